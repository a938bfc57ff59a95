// A wire among ranks of one thread, for tests: it keeps every rule of runtime/comm/wire.ts and breaks whoever relies on more than they say.

import type { Lane, Wait, Wire } from '../../runtime/comm/wire.ts'
import { RankFailedError, type RankmeshError, TimeoutError } from '../../runtime/core/errors.ts'
import { Random } from './random.ts'

export interface MemoryWireOptions {
  /** Rounds arrive after random delays drawn from this seed, each rank's in order; absent: at once. */
  seed?: number
  /** Longest delay in milliseconds. */
  delayMs?: number
}

/** What memory holds that a rank must no longer look at. */
const STALE = 0xdd

interface Round {
  bytes: (Uint8Array | undefined)[]
  waiters: ({ resolve(all: Uint8Array[]): void; reject(error: unknown): void } | undefined)[]
}

interface World {
  delay(): number
  groups: Set<MemoryGroup>
  splits: Map<string, MemoryGroup>
}

/** What the wires of one group share. */
class MemoryGroup {
  readonly world: World
  readonly members: readonly number[]
  readonly left: Set<number> = new Set()
  readonly calls: string[][]
  readonly #lanes = new Map<string, MemoryLane[]>()
  readonly #watchers = new Set<(failure: RankmeshError) => void>()
  readonly rejecters: Set<(error: RankmeshError) => void> = new Set()
  failure: RankmeshError | null = null

  constructor(world: World, members: readonly number[]) {
    this.world = world
    this.members = members
    this.calls = members.map(() => [])
    world.groups.add(this)
  }

  fail(failure: RankmeshError): void {
    if (this.failure) return
    this.failure = failure
    for (const reject of [...this.rejecters]) reject(failure)
    for (const listener of [...this.#watchers]) listener(failure)
    this.#watchers.clear()
  }

  watch(listener: (failure: RankmeshError) => void): () => void {
    this.#watchers.add(listener)
    return () => this.#watchers.delete(listener)
  }

  /** `rank` joins no more rounds. */
  leave(rank: number): void {
    if (this.left.has(rank)) return
    this.left.add(rank)
    for (const lanes of this.#lanes.values()) for (const lane of lanes) lane.without()
  }

  gone(rank: number): RankFailedError {
    const world = this.members[rank] as number
    return new RankFailedError(`Rank ${world} has closed its part of this group`, { rank: world })
  }

  lane(name: string, ranks: readonly number[], rank: number): MemoryLane {
    const lanes = this.#lanes.get(name) ?? newLanes(this, ranks)
    this.#lanes.set(name, lanes)
    return lanes[ranks.indexOf(rank)] as MemoryLane
  }
}

function newLanes(group: MemoryGroup, ranks: readonly number[]): MemoryLane[] {
  const rounds = new Map<number, Round>()
  return ranks.map((_, index) => new MemoryLane(group, ranks, index, rounds))
}

class MemoryLane implements Lane {
  readonly rank: number
  readonly #group: MemoryGroup
  /** By rank of the group. */
  readonly #ranks: readonly number[]
  readonly #rounds: Map<number, Round>
  #next = 0
  #given: Uint8Array[] = []
  #last: Promise<unknown> = Promise.resolve()

  constructor(group: MemoryGroup, ranks: readonly number[], index: number, rounds: Map<number, Round>) {
    this.#group = group
    this.#ranks = ranks
    this.rank = index
    this.#rounds = rounds
  }

  get size(): number {
    return this.#ranks.length
  }

  async exchange(bytes: Uint8Array, wait: Wait): Promise<readonly Uint8Array[]> {
    for (const old of this.#given.splice(0)) old.fill(STALE)
    const group = this.#group
    if (group.failure) throw group.failure
    if (group.left.has(this.#ranks[this.rank] as number)) throw group.gone(this.#ranks[this.rank] as number)
    const me = group.members[this.#ranks[this.rank] as number] as number
    if (wait.signal?.aborted) this.#aborted(me, wait.signal)
    const at = this.#next++
    const round = this.#rounds.get(at) ?? { bytes: [], waiters: [] }
    this.#rounds.set(at, round)
    round.bytes[this.rank] = bytes
    const before = this.#last
    const arrived = new Promise<Uint8Array[]>((resolve, reject) => {
      round.waiters[this.rank] = { resolve, reject }
    })
    const done = this.#guarded(round, arrived, before, wait, me)
    this.#last = done.catch(() => {})
    this.#settle(at, round)
    return done
  }

  /** Somebody has left: rounds that now cannot be complete say so. */
  without(): void {
    for (const [at, round] of this.#rounds) this.#settle(at, round)
  }

  #settle(at: number, round: Round): void {
    const missing = this.#ranks.findIndex((_, i) => round.bytes[i] === undefined)
    if (missing < 0) {
      this.#rounds.delete(at)
      // Each rank gets copies of its own, over memory that no device may be given.
      for (const waiter of round.waiters) {
        waiter?.resolve(
          round.bytes.map((bytes) => {
            const copy = new Uint8Array(new SharedArrayBuffer((bytes as Uint8Array).byteLength + 1), 1)
            copy.set(bytes as Uint8Array)
            return copy
          }),
        )
      }
      return
    }
    const gone = this.#ranks.findIndex((rank, i) => round.bytes[i] === undefined && this.#group.left.has(rank))
    if (gone >= 0) for (const waiter of round.waiters) waiter?.reject(this.#group.gone(this.#ranks[gone] as number))
  }

  async #guarded(round: Round, arrived: Promise<Uint8Array[]>, before: Promise<unknown>, wait: Wait, me: number): Promise<Uint8Array[]> {
    const group = this.#group
    let timer: ReturnType<typeof setTimeout> | undefined
    let onAbort = (): void => {}
    let onEnd = (_: RankmeshError): void => {}
    const ended = new Promise<never>((_, reject) => {
      onEnd = reject
      group.rejecters.add(onEnd)
      timer = setTimeout(() => {
        const absent = this.#ranks.filter((_, i) => round.bytes[i] === undefined).map((rank) => group.members[rank] as number)
        const about = `Rank${absent.length === 1 ? '' : 's'} ${absent.join(', ')} did not arrive at ${wait.call} within ${wait.timeoutMs} ms`
        const [rank] = absent
        group.fail(new TimeoutError(about, rank === undefined ? {} : { rank }))
      }, wait.deadline - performance.now())
      onAbort = (): void => {
        reject(wait.signal?.reason)
        group.fail(new RankFailedError(`Rank ${me} failed: ${String(wait.signal?.reason)}`, { rank: me }))
      }
      wait.signal?.addEventListener('abort', onAbort, { once: true })
    })
    ended.catch(() => {})
    try {
      const all = await Promise.race([arrived, ended])
      clearTimeout(timer)
      const ms = group.world.delay()
      if (ms > 0) await new Promise((resolve) => setTimeout(resolve, ms))
      await before
      this.#given = all
      return all
    } finally {
      clearTimeout(timer)
      group.rejecters.delete(onEnd)
      wait.signal?.removeEventListener('abort', onAbort)
    }
  }

  #aborted(me: number, signal: AbortSignal): never {
    this.#group.fail(new RankFailedError(`Rank ${me} failed: ${String(signal.reason)}`, { rank: me }))
    throw signal.reason
  }
}

export class MemoryWire implements Wire {
  readonly backend = 'thread'
  readonly about = 'memory of one thread, for tests'
  readonly isSameProcess = true
  readonly rank: number
  readonly control: Lane
  readonly data: Lane
  readonly #group: MemoryGroup

  constructor(group: MemoryGroup, rank: number) {
    this.#group = group
    this.rank = rank
    const everybody = group.members.map((_, i) => i)
    this.control = group.lane('control', everybody, rank)
    this.data = group.lane('data', everybody, rank)
  }

  get size(): number {
    return this.#group.members.length
  }

  get members(): readonly number[] {
    return this.#group.members
  }

  get failure(): RankmeshError | null {
    return this.#group.failure
  }

  pair(src: number, dst: number): Lane {
    return this.#group.lane(`pair ${src} ${dst}`, [src, dst], this.rank)
  }

  async split(ranks: readonly number[], name: string): Promise<Wire> {
    const { world } = this.#group
    const members = ranks.map((rank) => this.members[rank] as number)
    const key = `${this.members.join(' ')} / ${name} / ${members.join(' ')}`
    const group = world.splits.get(key) ?? new MemoryGroup(world, members)
    world.splits.set(key, group)
    return new MemoryWire(group, ranks.indexOf(this.rank))
  }

  watch(listener: (failure: RankmeshError) => void): () => void {
    return this.#group.watch(listener)
  }

  note(call: string): void {
    const calls = this.#group.calls[this.rank] as string[]
    calls.push(call)
    if (calls.length > 8) calls.shift()
  }

  history(): string {
    return this.#group.calls.map((calls, i) => `rank ${this.members[i]}: ${calls.join(', ') || 'none'}`).join('; ')
  }

  record(): string[][] {
    return this.#group.calls
  }

  fail({ code, message, rank }: { code: 'ERR_RANK_FAILED' | 'ERR_TIMEOUT'; message: string; rank: number }): void {
    this.#group.fail(code === 'ERR_TIMEOUT' ? new TimeoutError(message, { rank }) : new RankFailedError(message, { rank }))
  }

  /** This rank's thread is no more: every group it is in ends. */
  die(message: string): void {
    const rank = this.members[this.rank] as number
    for (const group of this.#group.world.groups) {
      if (group.members.includes(rank)) group.fail(new RankFailedError(`Rank ${rank} failed: ${message}`, { rank }))
    }
  }

  leave(): void {
    this.#group.leave(this.rank)
  }

  close(): void {
    this.leave()
  }
}

/** The wires of a new world, one for each rank. */
export function memoryWires(size: number, { seed, delayMs = 2 }: MemoryWireOptions = {}): MemoryWire[] {
  const random = seed === undefined ? null : new Random(seed)
  const world: World = { delay: () => (random ? random.int(delayMs + 1) : 0), groups: new Set(), splits: new Map() }
  const members = Array.from({ length: size }, (_, i) => i)
  const group = new MemoryGroup(world, members)
  return members.map((rank) => new MemoryWire(group, rank))
}
