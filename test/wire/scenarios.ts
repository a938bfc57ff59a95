// What ranks of test programs do, by name. Each rank checks what it gets itself and throws where it is wrong.
import { subscribe } from 'node:diagnostics_channel'
import { ABORT_CHANNEL, type AbortEvent } from '../../runtime/comm/abort.ts'
import type { HostArray, HostOp } from '../../runtime/comm/host.ts'
import { waitFor } from '../../runtime/comm/wire.ts'
import type { WireHostComm } from '../../runtime/comm/wire-host.ts'
import { RankFailedError } from '../../runtime/core/errors.ts'
import { Random } from '../support/random.ts'

/** What a call that must fail throws, as data. */
async function errorOf(work: Promise<unknown>): Promise<{ code: string; message: string }> {
  try {
    await work
  } catch (error) {
    const { code = (error as Error).name, message } = error as { code?: string; message: string }
    return { code, message }
  }
  return { code: 'none', message: '' }
}

type Scenario<D> = (host: WireHostComm, data: D) => Promise<unknown>

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** A thread or process that does nothing at all for some time: not even its event loop goes on. */
function freeze(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
}

function same(found: unknown, expected: unknown, what: string): void {
  const text = (value: unknown): string =>
    JSON.stringify(value, (_, part) =>
      typeof part === 'bigint' ? `${part}n` : ArrayBuffer.isView(part) ? [...(part as Uint8Array)] : part,
    )
  if (text(found) !== text(expected))
    throw new Error(`${what}: expected ${text(expected).slice(0, 300)} but found ${text(found).slice(0, 300)}`)
}

const ARRAYS = { Int32Array, Uint32Array, BigInt64Array, BigUint64Array, Float32Array, Float64Array }
type ArrayName = keyof typeof ARRAYS

/** Numbers of rank `rank`: any bits of integers; floats of very different sizes, some NaN where `nan`. */
function numbers(name: ArrayName, length: number, seed: number, rank: number, nan = false): HostArray {
  const random = new Random((seed + rank * 7919) >>> 0)
  const array = new ARRAYS[name](length)
  const words = new Uint32Array(array.buffer)
  if (!name.startsWith('Float')) for (let i = 0; i < words.length; i++) words[i] = random.bits()
  else
    for (let i = 0; i < length; i++)
      array[i] = nan && random.int(9) === 0 ? Number.NaN : (random.bits() / 2 ** 31 - 1) * 2 ** (random.int(40) - 20)
  return array
}

/** As the ranks ascending combine, each step rounded or wrapped as the type does. */
function combined(name: ArrayName, parts: readonly HostArray[], op: HostOp): HostArray {
  const sum = new ARRAYS[name](parts[0] as never) as Float64Array // which wraps integers, of 64 bits too
  for (const part of parts.slice(1) as Float64Array[]) {
    for (let i = 0; i < sum.length; i++) {
      const a = sum[i]!
      const b = part[i]!
      if (op === 'sum') sum[i] = a + b
      else if (Number.isNaN(a) || Number.isNaN(b)) sum[i] = Number.NaN
      else sum[i] = (op === 'min' ? b < a : b > a) ? b : a
    }
  }
  return sum as HostArray
}

/** The same bits, but for those of a NaN. */
function sameBits(found: HostArray, expected: HostArray, what: string): void {
  const bytes = ({ buffer, byteOffset, byteLength }: HostArray): Uint8Array => new Uint8Array(buffer, byteOffset, byteLength)
  if (Buffer.compare(bytes(found), bytes(expected)) === 0) return
  if (found.length !== expected.length) throw new Error(`${what}: ${found.length} elements, expected ${expected.length}`)
  expected.forEach((value: number | bigint, i: number) => {
    if (!Object.is(found[i], value)) throw new Error(`${what}: element ${i} of ${found.length} is ${found[i]}, expected ${value}`)
  })
}

const LENGTHS = [0, 1, 2, 3, 7, 64, 1023, 2048, 20_001]

export const scenarios: Record<string, Scenario<never>> = {
  /** Every host collective with values of many kinds. */
  async values(host, { seed }: { seed: number }) {
    const { rank, size } = host
    const value = (of: number): unknown => ({
      of,
      text: 'é'.repeat(of * 50),
      map: new Map([[of, new Date(of)]]),
      big: 2n ** 70n + BigInt(of),
      floats: new Float32Array([of, 0.5]),
    })
    for (let root = 0; root < size; root++) {
      const got = await host.broadcast(rank === root ? value(root) : null, { root })
      same(got, value(root), `broadcast from ${root}`)
      if (!((got as { map: Map<number, Date> }).map.get(root) instanceof Date)) throw new Error('a Map of Dates did not survive')
    }
    same(
      await host.allGather(value(rank)),
      Array.from({ length: size }, (_, r) => value(r)),
      'allGather',
    )
    const random = new Random(seed)
    for (const bytes of [0, 1, 4095, 4096, 65_536, 524_288, 524_289, 3_000_000]) {
      const sizes = Array.from({ length: size }, () => random.int(bytes + 1))
      const own = new Uint8Array(sizes[rank]!).fill(rank + 1)
      const all = await host.allGather(own)
      all.forEach((part, r) => {
        if (part.length !== sizes[r] || part.some((byte) => byte !== r + 1))
          throw new Error(`allGather of up to ${bytes} bytes: rank ${r}'s part is wrong`)
      })
    }
    same(await host.allReduce(rank + 1), (size * (size + 1)) / 2, 'sum of numbers')
    same(await host.allReduce(2n ** 65n + BigInt(rank), 'max'), 2n ** 65n + BigInt(size - 1), 'max of bigints')
    await host.barrier()
    await host.sync({ blocking: true })
    return host.isSameProcess
  },

  /** Arrays of all types, ops and lengths, private and in shared memory, against the order of the ranks. */
  async arrays(host, { seed, lengths = LENGTHS }: { seed: number; lengths?: number[] }) {
    const { rank, size } = host
    const memory = await host.allocate(Math.max(...lengths) * 8 + 64)
    let cases = 0
    for (const name of Object.keys(ARRAYS) as ArrayName[]) {
      for (const op of ['sum', 'min', 'max'] as const) {
        for (const length of lengths) {
          const at = seed + cases++
          const parts = Array.from({ length: size }, (_, r) => numbers(name, length, at, r, op !== 'sum'))
          const expected = combined(name, parts, op)
          const what = `${op} of ${name}[${length}], seed ${at}`
          const own = parts[rank]!
          const before = own.slice()
          sameBits(await host.allReduce(own, op), expected, what)
          sameBits(own, before as HostArray, `${what}: the operand`)
          const shared = new ARRAYS[name](memory.buffer as ArrayBuffer, memory.byteOffset + (cases % 2) * 64, length)
          shared.set(before as never)
          const result = await host.allReduce(shared, op, { inPlace: true })
          if (result !== shared) throw new Error(`${what}: in place gave another array`)
          sameBits(shared, expected, `${what}, in shared memory`)
          sameBits(await host.allReduce(own, op, { inPlace: true }), expected, `${what}, in place`)
        }
      }
    }
    return cases
  },

  /** Groups of groups beside the whole, all in use at once. */
  async splits(host) {
    const { rank, size } = host
    const half = (await host.split({ color: rank % 2, key: -rank }))!
    const none = await host.split({ color: rank === 0 ? null : 5 })
    const inner = (await half.split({ color: 0, key: rank }))!
    const peers = Array.from({ length: size }, (_, r) => r).filter((r) => r % 2 === rank % 2)
    same(await half.allGather(rank), peers.toReversed(), 'half')
    same(await inner.allGather(rank), peers, 'half of a half')
    same(
      none === null ? null : await none.allGather(rank),
      rank === 0 ? null : Array.from({ length: size - 1 }, (_, r) => r + 1),
      'all but one',
    )
    same(half.members, peers.toReversed(), 'members')
    const [a, b, c] = await Promise.all([host.allReduce(1), half.allReduce(new Float32Array(3).fill(2)), inner.allReduce(3n)])
    same([a, b, c], [size, new Float32Array(3).fill(2 * peers.length), 3n * BigInt(peers.length)], 'at once')
    for (const group of [half, inner, none]) group?.close()
    return host.allReduce(1)
  },

  /** Many small collectives; gives how many were wrong. */
  async many(host, { count, seed }: { count: number; seed: number }) {
    const { rank, size } = host
    const random = new Random(seed)
    let wrong = 0
    const four = new Int32Array(4)
    for (let i = 0; i < count; i++) {
      const k = random.int(1000)
      switch (i % 4) {
        case 0:
          if ((await host.allReduce(k + rank)) !== size * k + (size * (size - 1)) / 2) wrong++
          break
        case 1:
          four.fill(k * rank)
          if ((await host.allReduce(four, 'max'))[3] !== k * (size - 1)) wrong++
          break
        case 2:
          if ((await host.broadcast(rank === i % size ? k : null, { root: i % size })) !== k) wrong++
          break
        default:
          if ((await host.allGather(k * rank)).some((value, r) => value !== k * r)) wrong++
      }
    }
    return wrong
  },

  /** Several collectives under way without awaiting each, and messages between pairs. */
  async overlapped(host) {
    const { rank, size } = host
    const results = await Promise.all(
      Array.from({ length: 50 }, (_, i) => (i % 2 ? host.allReduce(new Float64Array([i, rank])) : host.allGather({ i, rank }))),
    )
    results.forEach((result, i) => {
      const expected =
        i % 2 ? new Float64Array([i * size, (size * (size - 1)) / 2]) : Array.from({ length: size }, (_, r) => ({ i, rank: r }))
      same(result, expected, `number ${i}`)
    })
    if (size < 2) return 0
    const [next, previous] = [(rank + 1) % size, (rank + size - 1) % size]
    for (const length of [0, 1, 16_384, 100_001]) {
      const wait = waitFor(10_000, 'a message')
      const [, [, got]] = await Promise.all([
        host.wire
          .pair(rank, next)
          .exchange(new Uint8Array(length).fill(rank), wait)
          .then((all) => all),
        host.wire
          .pair(previous, rank)
          .exchange(new Uint8Array(0), wait)
          .then((all) => [null, all[0]] as const),
      ])
      if (got!.length !== length || got!.some((byte) => byte !== previous))
        throw new Error(`a message of ${length} bytes from ${previous} is wrong`)
    }
    return size
  },

  async mismatched(host) {
    const { rank } = host
    const codes: unknown[] = []
    const attempt = async (work: () => Promise<unknown>): Promise<void> => {
      try {
        await work()
        codes.push('none')
      } catch (error) {
        codes.push((error as { code: string }).code, (error as Error).message)
      }
    }
    await attempt(() => (rank === 1 ? host.allGather(1) : host.barrier()))
    await attempt(() => host.allReduce(rank === 0 ? ((() => {}) as never) : 1))
    await attempt(() => (rank === 0 ? host.allReduce(new Float32Array(4)) : host.allReduce(new Float32Array(5))))
    await attempt(() => (rank === 0 ? host.allReduce(new Float32Array(4)) : host.barrier()))
    return { codes, after: await host.allReduce(1) }
  },

  /** Rank `who` ends in some way while the others wait for it; gives their errors' times. */
  async waiting(host, { who, how, after = 100, timeoutMs }: { who: number; how: string; after?: number; timeoutMs?: number }) {
    await host.barrier()
    if (host.rank === who) {
      await sleep(after)
      if (how === 'throw') {
        host.wire.fail({ code: 'ERR_RANK_FAILED', message: `Rank ${who} failed: Error: on purpose`, rank: who })
        throw new Error('on purpose')
      }
      if (how === 'leave') return 'left'
      if (how === 'freeze') {
        freeze(timeoutMs! + 1500)
        return host.allReduce(1)
      }
      if (how === 'abort') {
        const stop = new AbortController()
        setTimeout(() => stop.abort(new Error('told to stop')), 50)
        return (await host.split({ color: who }))!.barrier().then(() => host.allReduce(new Float32Array(1), 'sum', { signal: stop.signal }))
      }
      await sleep(60_000) // until it is killed
    }
    if (how === 'abort') {
      await host.split({ color: who + 1 })
      await sleep(500)
    }
    for (;;) await host.allReduce(new Int32Array(3), 'sum', timeoutMs === undefined ? {} : { timeoutMs })
  },

  /** A split after one that did not come about. */
  async splitAgain(host) {
    const failed = await errorOf(host.rank === 0 ? host.split({ color: 0 }) : host.barrier())
    const part = (await host.split({ color: 0 }))!
    return [failed.code, await part.allReduce(1)]
  },

  /** Calls behind one that waits: the signal and the deadline of rank 0's second call count although it has not had its turn. */
  async queued(host, { how }: { how: 'signal' | 'deadline' }) {
    await host.barrier()
    const began = performance.now()
    if (host.rank === 1) {
      await sleep(1500)
      return errorOf(host.barrier())
    }
    const stop = new AbortController()
    const first = errorOf(host.barrier())
    const second = errorOf(host.barrier(how === 'signal' ? { signal: stop.signal } : { timeoutMs: 200 }))
    setTimeout(() => stop.abort(new RangeError('enough')), 200)
    const told = await second
    return { ms: performance.now() - began, second: told, first: await first }
  },

  /** More memory than there is, on all ranks. */
  async tooMuch(host) {
    const began = performance.now()
    const error = await errorOf(host.allocate(2 ** 45))
    return { code: error.code, ms: performance.now() - began }
  },

  /** Arrays that lie in the group's memory but not in this rank's own block of it. */
  async elsewhere(host) {
    const bytes = await host.allocate(4096)
    const array = new Float32Array(bytes.buffer as ArrayBuffer, 0, 16)
    await host.barrier()
    const own = new Float32Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, 16).fill(host.rank + 1)
    const sum = await host.allReduce(own, 'sum', { inPlace: true })
    const before = array[0]
    return [sum[7], (await host.allReduce(host.rank === 0 ? own : new Float32Array(16).fill(before!)))[7]]
  },

  /** What a closed group does, and a group split off one that has failed. */
  async closed(host) {
    const child = (await host.split({ color: 0 }))!
    const other = (await host.split({ color: 0 }))!
    await other.barrier()
    other.close()
    const after = [await errorOf(other.barrier()), await errorOf(other.allReduce(new Float32Array(3)))]
    await host.barrier()
    if (host.rank === 0) host.end(new RankFailedError('Rank 0 failed: on purpose', { rank: 0 }))
    else await sleep(100)
    const ended = [await errorOf(host.barrier()), await errorOf(child.barrier()), await errorOf(child.allReduce(new Float32Array(3)))]
    return { after, ended }
  },

  /** 300 different calls, then rank 1 fails; what the event of that carries. */
  async event(host) {
    const events: AbortEvent[] = []
    subscribe(ABORT_CHANNEL, (event) => void events.push(event as AbortEvent))
    for (let i = 0; i < 300; i++) await host.allReduce(new Int32Array(i))
    if (host.rank === 1) {
      host.end(new RankFailedError('Rank 1 failed: on purpose', { rank: 1 }))
      throw new Error('on purpose')
    }
    const code = await host.barrier().then(
      () => 'none',
      (error) => error.code,
    )
    await host.barrier().catch(() => {})
    return {
      code,
      events: events.map(({ error, members, calls }) => ({
        message: error.message,
        members,
        calls: calls.map((list) => [list.length, list.at(-1)]),
      })),
    }
  },

  /** Collectives for ever, until somebody dies. */
  async endless(host) {
    for (let i = 0; ; i++) {
      if (i % 3 === 0) await host.allGather({ i })
      else await host.allReduce(new Float32Array(i % 2 ? 5 : 5000))
    }
  },
} as Record<string, Scenario<never>>
