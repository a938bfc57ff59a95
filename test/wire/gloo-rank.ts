// One rank of the tests of GlooWire, in a process of its own: joins the store, connects, does what the test says and tells how it ended.
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { connectGlooWire } from '../../runtime/comm/wire/gloo-wire-node.ts'
import { connectHybridWire } from '../../runtime/comm/wire/hybrid-wire.ts'
import { SharedWire } from '../../runtime/comm/wire/shared-wire.ts'
import { shmPlace } from '../../runtime/comm/wire/shm-place.ts'
import { StoreClient } from '../../runtime/comm/wire/store-client-node.ts'
import { type Lane, type Wire, waitFor } from '../../runtime/comm/wire.ts'
import type { Addon } from '../../runtime/core/addon.ts'
import { loadAddon } from '../../runtime/core/addon-node.ts'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { Random } from '../support/random.ts'

export interface Job {
  scenario: string
  rank: number
  size: number
  port: number
  token: string
  seed: number
  timeoutMs: number
  /** The ranks of each node, for a wire of shared memory inside nodes; every rank is a node where absent. */
  nodes?: readonly (readonly number[])[]
}

export interface Ending {
  rank: number
  result?: unknown
  error?: { code: string; message: string; rank: number | undefined }
  ms: number
}

/** What rank `rank` sends in a round: the others make the same to compare. */
function bytesOf(seed: number, rank: number, round: number, length: number): Uint8Array {
  const random = new Random(seed + rank * 1_000_003 + round * 7919)
  const words = new Uint32Array((length >> 2) + 1)
  for (let i = 0; i < words.length; i++) words[i] = random.bits()
  return new Uint8Array(words.buffer, 0, length)
}

const LENGTHS = [0, 1, 3, 100, 4097, 16_383, 16_384, 16_385, 16_392, 40_001, 65_536, 65_537, 300_000, 1_500_003]

function lengthOf(seed: number, rank: number, round: number): number {
  return LENGTHS[new Random(seed ^ (rank * 31 + round * 17)).int(LENGTHS.length)] as number
}

async function checkRounds(job: Job, lane: Lane, name: (member: number) => number, rounds: number, pipelined: boolean): Promise<void> {
  const { seed, timeoutMs } = job
  const one = async (round: number): Promise<void> => {
    const mine = name(lane.rank)
    const all = await lane.exchange(bytesOf(seed, mine, round, lengthOf(seed, mine, round)), waitFor(timeoutMs, `round ${round}`))
    if (all.length !== lane.size) throw new Error(`round ${round}: ${all.length} results`)
    for (const [member, bytes] of all.entries()) {
      const rank = name(member)
      const expected = bytesOf(seed, rank, round, lengthOf(seed, rank, round))
      if (Buffer.compare(bytes, expected) !== 0)
        throw new Error(`seed ${seed}, round ${round}: wrong bytes of rank ${rank} (${bytes.length} of ${expected.length})`)
    }
  }
  const under: Promise<void>[] = []
  for (let round = 0; round < rounds; round++) {
    const ended = one(round)
    under.push(ended)
    if (!pipelined) await ended
  }
  await Promise.all(under)
}

const KINDS = [Int32Array, Uint32Array, BigInt64Array, BigUint64Array, Float32Array, Float64Array] as const
type Numbers = InstanceType<(typeof KINDS)[number]>

function numbersOf(seed: number, rank: number, kind: (typeof KINDS)[number], count: number): Numbers {
  const random = new Random(seed + rank * 104_729 + count)
  const big = kind === BigInt64Array || kind === BigUint64Array
  const floats = kind === Float32Array || kind === Float64Array
  const array = new kind(count)
  for (let i = 0; i < count; i++) array[i] = (big ? BigInt(random.bits()) << 33n : floats ? random.normal() * 1e3 : random.bits()) as never
  return array
}

/** Rank-ascending, in the arithmetic of the kind: the arrays themselves round and wrap. */
function combined(parts: readonly Numbers[], op: string): Numbers {
  const result = parts[0]!.slice()
  for (const part of parts.slice(1)) {
    for (let i = 0; i < result.length; i++) {
      const [a, b] = [result[i]!, part[i]!]
      result[i] = (op === 'sum' ? (a as number) + (b as number) : op === 'min' ? (b < a ? b : a) : b > a ? b : a) as never
    }
  }
  return result
}

async function checkReductions(job: Job, wire: Wire): Promise<number> {
  const { seed, size, rank, timeoutMs } = job
  let done = 0
  for (const kind of KINDS) {
    for (const op of ['sum', 'min', 'max'] as const) {
      for (const count of [0, 1, 7, 4096, 4097, 12_345, ...(kind === Float32Array ? [400_003] : [])]) {
        const array = numbersOf(seed, rank, kind, count)
        const call = `reduce(${op}, ${kind.name}[${count}])`
        await wire.reduce?.(array, op, call, () => waitFor(timeoutMs, call))
        const parts = Array.from({ length: size }, (_, r) => numbersOf(seed, r, kind, count))
        const expected = combined(parts, op)
        const at = array.findIndex((value: unknown, i: number) => value !== expected[i])
        if (at >= 0) throw new Error(`seed ${seed}: ${op} of ${kind.name}[${count}] at ${at}: ${array[at]} instead of ${expected[at]}`)
        done++
      }
    }
  }
  return done
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** What ends the group while this rank does something else. */
async function failureOf(wire: Wire): Promise<RankmeshError> {
  const busy = setInterval(() => {}, 1000)
  const failure = await new Promise<RankmeshError>((resolve) => void wire.watch(resolve))
  clearInterval(busy)
  return failure
}

const scenarios: Record<string, (wire: Wire, job: Job) => Promise<unknown>> = {
  async rounds(wire, job) {
    const name = (member: number): number => member
    await checkRounds(job, wire.control, name, 12, false)
    await Promise.all([
      checkRounds(job, wire.control, name, 10, true),
      checkRounds({ ...job, seed: job.seed + 1 }, wire.data, name, 10, true),
    ])
    // Lanes that wait for one another in a circle, were they one.
    const others = Array.from({ length: job.size }, (_, peer) => peer).filter((peer) => peer !== job.rank)
    const pairs = others.flatMap((peer) => [
      { lane: wire.pair(job.rank, peer), src: job.rank, dst: peer },
      { lane: wire.pair(peer, job.rank), src: peer, dst: job.rank },
    ])
    const order = job.rank % 2 === 0 ? pairs : pairs.reverse()
    await Promise.all(
      order.map(({ lane, src, dst }) =>
        checkRounds({ ...job, seed: job.seed + src * 9 + dst }, lane, (m) => (m === 0 ? src : dst), 4, true),
      ),
    )
    return 'ok'
  },
  reductions: (wire, job) => checkReductions(job, wire),
  async split(wire, job) {
    const ranks = (job.rank % 2 === 0 ? [2, 0] : [3, 1]).filter((rank) => rank < job.size)
    const part = await wire.split(ranks, `parity ${job.rank % 2}`, waitFor(job.timeoutMs, 'split'))
    await checkRounds(job, part.control, (member) => ranks[member] as number, 5, true)
    part.close()
    await checkRounds(job, wire.control, (member) => member, 3, false)
    return part.members
  },
  async silent(wire, job) {
    wire.note('first()')
    await wire.control.exchange(Uint8Array.of(1), waitFor(10_000, 'first()'))
    if (job.rank === 1) {
      wire.note('something else()')
      await sleep(3000)
      return 'silent'
    }
    wire.note('second()')
    await wire.control.exchange(Uint8Array.of(1), waitFor(700, 'second()'))
    return 'no'
  },
  async killed(wire, job) {
    for (let round = 0; ; round++) {
      if (job.rank === 1 && round === 20) process.kill(process.pid, 'SIGKILL')
      await wire.data.exchange(new Uint8Array(100_000), waitFor(30_000, `round ${round}`))
    }
  },
  async 'killed while others do something else'(wire, job) {
    if (job.rank === 1) setTimeout(() => process.kill(process.pid, 'SIGKILL'), 200)
    throw await failureOf(wire)
  },
  async terminated(wire) {
    await wire.control.exchange(new Uint8Array(1), waitFor(30_000, 'together()'))
    await wire.control.exchange(new Uint8Array(1), waitFor(30_000, 'never()'))
  },
  async waiting(wire) {
    await wire.control.exchange(new Uint8Array(1), waitFor(30_000, 'together()'))
    const never = [wire.data, wire.pair(0, 1), wire.pair(1, 0)].map((lane) => lane.exchange(new Uint8Array(1), waitFor(30_000, 'other()')))
    parentPort?.postMessage('waits')
    await Promise.all(never)
  },
  async left(wire, job) {
    const big = new Uint8Array(5_000_000)
    await wire.control.exchange(big, waitFor(job.timeoutMs, 'together()'))
    if (job.rank === 1) {
      const last = wire.control.exchange(big, waitFor(job.timeoutMs, 'last()'))
      wire.close()
      return (await last).length
    }
    await sleep(100)
    await wire.control.exchange(big, waitFor(job.timeoutMs, 'last()'))
    await wire.control.exchange(big, waitFor(job.timeoutMs, 'alone()'))
    return 'no'
  },
  async aborted(wire, job) {
    const controller = new AbortController()
    if (job.rank === 1) setTimeout(() => controller.abort(new Error('enough')), 200)
    const who = job.rank === 1 ? controller.signal : undefined
    if (job.rank === 0) throw await failureOf(wire)
    await wire.control.exchange(new Uint8Array(1), waitFor(30_000, 'never()', who))
  },
  async mismatch(wire, job) {
    const call = job.rank === 0 ? 'allReduce(a)' : 'allReduce(b)'
    await wire.reduce?.(new Float32Array(10), 'sum', call, () => waitFor(job.timeoutMs, call))
  },
}

async function onNodes({ rank, token, timeoutMs }: Job, nodes: readonly (readonly number[])[], across: Wire, addon: Addon): Promise<Wire> {
  const node = nodes.findIndex((ranks) => ranks.includes(rank))
  const members = nodes[node] as readonly number[]
  const member = { rank: members.indexOf(rank), members, parent: null }
  const local = await SharedWire.connect(shmPlace(addon), `${token.slice(0, 12)}.${node}`, member, waitFor(timeoutMs, 'connect'))
  return connectHybridWire({ local, across, nodes }, waitFor(timeoutMs, 'connect'))
}

async function main(job: Job): Promise<Ending> {
  const { rank, size, port, token, timeoutMs, scenario } = job
  const store = await StoreClient.connect({ host: '127.0.0.1', port, token, timeoutMs: 10_000 })
  await store.join(rank, size)
  const members = Array.from({ length: size }, (_, r) => r)
  let start = performance.now()
  try {
    const options = { addon: loadAddon() as Addon, store, rank, members, host: '127.0.0.1', scope: 'world' }
    const across = await connectGlooWire(options, waitFor(timeoutMs, 'connect'))
    const wire = job.nodes ? await onNodes(job, job.nodes, across, options.addon) : across
    start = performance.now()
    const result = await scenarios[scenario]!(wire, job)
    wire.close()
    await store.leave()
    return { rank, result, ms: performance.now() - start }
  } catch (error) {
    const { code, message, rank: culprit } = error as RankmeshError
    return { rank, error: { code, message, rank: culprit }, ms: performance.now() - start }
  }
}

/** A rank in a worker thread that is terminated while its round waits; this thread must live on. */
async function terminate(job: Job): Promise<Ending> {
  const start = performance.now()
  const worker = new Worker(new URL(import.meta.url), { workerData: { ...job, scenario: 'waiting' } })
  await new Promise((resolve) => void worker.on('message', resolve))
  await sleep(100)
  await worker.terminate()
  await sleep(100)
  return { rank: job.rank, result: 'alive', ms: performance.now() - start }
}

if (isMainThread) {
  const job = JSON.parse(process.argv[2] as string) as Job
  const ending = job.scenario === 'terminated' && job.rank === 1 ? await terminate(job) : await main(job)
  // The process ends by itself from here on: nothing may hold it.
  process.send?.(ending, () => process.disconnect())
} else {
  await main(workerData as Job)
}
