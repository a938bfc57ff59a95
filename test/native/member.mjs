// One rank of the native tests, in a worker thread or a child process: does the steps it is sent and sends back what came of them.
import { createRequire } from 'node:module'
import { parentPort, workerData } from 'node:worker_threads'

export const LINE = 32
/** Bytes of one member's slots and of its block. */
export const SLOTS = 2 ** 15
export const BLOCK = 2 ** 20

/** Where everything lies in memory for `size` members. */
export function layoutOf(size) {
  const words = (1 + size) * LINE * 4
  const slots = Math.ceil(words / 4096) * 4096
  return { words, slots, blocks: slots + size * SLOTS, byteLength: slots + size * (SLOTS + BLOCK) }
}

/** A lane and its reducers over `buffer`, for one member. */
export function openLane(addon, buffer, rank, size) {
  const { words, slots, blocks } = layoutOf(size)
  const lane = { words: new Int32Array(buffer, 0, words / 4), at: LINE, members: size, me: rank, alarm: 0 }
  const views = (from, bytes) => Array.from({ length: size }, (_, m) => new Uint8Array(buffer, from + m * bytes, bytes))
  const epoch = new Int32Array(1)
  const reducers = [0, 1].map((block) => addon.createReducer(lane, block ? views(blocks, BLOCK) : views(slots, SLOTS), epoch, block))
  return { lane, epoch, reducers, block: blocks + rank * BLOCK }
}

async function reduce({ addon, lane, epoch, reducers }, inPlace, { array, op, signature, microseconds }) {
  for (;;) {
    const result = reducers[inPlace ? 1 : 0](array, op, signature, lane.words[0], microseconds)
    if (result !== 1 && result !== 2) return result
    await addon.waitAsync(lane, epoch[0], lane.words[0], 20_000)
  }
}

async function work({ addon: path, rank, size, buffer, segment, steps }, answer) {
  const addon = createRequire(import.meta.url)(path)
  const shared = segment ? addon.openSegment(segment) : null
  shared?.claim(rank)
  const memory = shared ? shared.buffer : buffer
  const own = { addon, ...openLane(addon, memory, rank, size) }
  const answers = []
  for (const step of steps) {
    let { array } = step
    if (step.at !== undefined) {
      array = new step.array.constructor(memory, own.block + step.at, step.array.length)
      array.set(step.array)
    }
    const result = await reduce(own, step.at !== undefined, { ...step, array })
    answers.push({ result, array: array.slice(), epoch: own.epoch[0] })
  }
  answer(answers)
}

if (parentPort && workerData?.steps) void work({ ...workerData, steps: workerData.steps }, (answers) => parentPort.postMessage(answers))
else if (process.send && process.argv[2] === 'member')
  process.once('message', (task) => void work(task, (answers) => process.send(answers, () => process.disconnect())))
