// Times the addon's all-reduce of float32 between ranks in worker threads (`threads`) and in processes (`processes`): µs a call, median.
// node bench/native-reduce.mjs [threads|processes] [ranks]
import { fork } from 'node:child_process'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { Worker, workerData } from 'node:worker_threads'

const addon = createRequire(import.meta.url)(process.env.RANKMESH_ADDON ?? '../build/Release/rankmesh.node')
const SIZES = [8, 2 ** 13, 2 ** 14, 2 ** 16, 2 ** 18, 2 ** 20, 2 ** 24, 2 ** 26]
const SLOT = 2 ** 19
const LINE = 32
const HEAD = 2 ** 16

function layout(ranks) {
  const block = 2 ** 26
  return { at: LINE, slots: HEAD, blocks: HEAD + ranks * 2 * SLOT, block, total: HEAD + ranks * (2 * SLOT + block) }
}

function run({ rank, ranks, buffer }) {
  const { at, slots, blocks, block } = layout(ranks)
  const lane = { words: new Int32Array(buffer, 0, HEAD / 4), at, members: ranks, me: rank, alarm: 0 }
  const views = (from, size) => Array.from({ length: ranks }, (_, m) => new Uint8Array(buffer, from + m * size, size))
  const epoch = new Int32Array(1)
  const carried = addon.createReducer(lane, views(slots, 2 * SLOT), epoch, 0)
  const placed = addon.createReducer(lane, views(blocks, block), epoch, 1)
  for (const [way, reduce] of [
    ['carried', carried],
    ['in place', placed],
  ])
    for (const size of SIZES) {
      const array = way === 'carried' ? new Float32Array(size / 4) : new Float32Array(buffer, blocks + rank * block, size / 4)
      const calls = Math.max(5, Math.min(20_000, Math.floor(2 ** 29 / size)))
      const samples = []
      for (let repeat = 0; repeat < 9; repeat++) {
        const start = performance.now()
        for (let i = 0; i < calls / 5; i++) while (reduce(array, 0, 7, 0, 1e6) !== 0);
        samples.push(((performance.now() - start) * 1000) / Math.ceil(calls / 5))
      }
      samples.sort((a, b) => a - b)
      if (rank === 0)
        console.log(
          `${way.padEnd(9)} ${String(size).padStart(9)} B  median ${samples[4].toFixed(2).padStart(9)} µs  best ${samples[0].toFixed(2).padStart(9)} µs`,
        )
    }
}

const file = fileURLToPath(import.meta.url)
if (workerData) run(workerData)
else if (process.argv[2] === 'child') {
  const segment = addon.openSegment(process.argv[3])
  run({ rank: Number(process.argv[4]), ranks: Number(process.argv[5]), buffer: segment.buffer })
} else {
  const [, , how = 'threads', count = '2'] = process.argv
  const ranks = Number(count)
  const { total } = layout(ranks)
  if (how === 'threads') {
    const buffer = new SharedArrayBuffer(total)
    for (let rank = 0; rank < ranks; rank++) new Worker(file, { workerData: { rank, ranks, buffer } })
  } else {
    const name = `rankmesh-bench-${process.pid}`
    const segment = addon.createSegment(name, total)
    let open = ranks
    const over = () => --open || segment.unlink()
    for (let rank = 0; rank < ranks; rank++) fork(file, ['child', name, String(rank), String(ranks)]).on('exit', over)
  }
}
