// SharedWire: the wire of ranks that share memory: worker threads of one process, or processes of one machine.
import { platform } from '#platform'
import { ArgumentError, CollectiveMismatchError, describe, RankFailedError, type RankmeshError, TimeoutError } from '../../core/errors.ts'
import type { Wait, Wire, WireArray, WireOp } from '../wire.ts'
import { Board, type Failure } from './board.ts'
import { HEADER, HERE, type Layout, LEFT, layoutOf } from './layout.ts'
import { type LaneGroup, SharedLane } from './shared-lane.ts'
import type { PlacedMemory, SharedPlace } from './shared-place.ts'
import { ArrayReducer } from './shared-reduce.ts'
import { stopped } from './stopped.ts'
import { atomicsWaiter, type Waiter } from './waiter.ts'

export interface SharedMember {
  rank: number
  /** The ranks' names in the world, by rank. */
  members: readonly number[]
  /** The wire this one is split off, whose end is its end too. */
  parent: SharedWire | null
}

/** How often a rank that waits for something else looks for word of a failure. */
const WATCH_MS = 100

export class SharedWire implements Wire, LaneGroup {
  readonly backend: 'thread' | 'shm'
  readonly about: string
  readonly isSameProcess: boolean
  readonly rank: number
  readonly size: number
  readonly members: readonly number[]
  readonly words: Int32Array
  readonly waiter: Waiter
  readonly control: SharedLane
  readonly data: SharedLane
  readonly #name: string
  readonly #place: SharedPlace
  readonly #memory: PlacedMemory
  readonly #layout: Layout
  readonly #board: Board
  readonly #parent: SharedWire | null
  readonly #pairs = new Map<number, SharedLane>()
  #arrays: ArrayReducer | undefined
  readonly #memories: PlacedMemory[] = [] // of arrays
  readonly #watchers = new Set<(failure: RankmeshError) => void>()
  #watching: ReturnType<typeof setInterval> | undefined
  #allocations = 0
  #unhook = (): void => {}
  #closed = false

  private constructor(place: SharedPlace, name: string, memory: PlacedMemory, { rank, members, parent }: SharedMember) {
    this.backend = place.backend
    this.about = place.about
    this.isSameProcess = place.isSameProcess
    this.rank = rank
    this.size = members.length
    this.members = members
    this.words = memory.words
    this.waiter = place.waiter
    this.#name = name
    this.#place = place
    this.#memory = memory
    this.#parent = parent
    this.#layout = layoutOf(this.size)
    this.#board = new Board(memory.words, this.size)
    const all = members.map((_, i) => i)
    this.control = new SharedLane(this, this.#layout.control, { members: all, rank, copies: true })
    this.data = new SharedLane(this, this.#layout.data, { members: all, rank, copies: false })
  }

  /**
   * Joins the group of this name; it is complete when this resolves.
   * @throws ERR_ARGUMENT on every rank where they give different sizes or one rank twice; ERR_TIMEOUT where one does not come.
   */
  static async connect(place: SharedPlace, name: string, member: SharedMember, wait: Wait): Promise<SharedWire> {
    const { rank, members } = member
    const { parent } = member
    const look = (): void => parent?.check([parent.members.indexOf(members[0] as number)])
    const memory = await orFail(parent, () => place.memory(name, layoutOf(members.length).byteLength, rank === 0, wait, look))
    const { words } = memory
    const unhook = platform.onExit(memory.close)
    try {
      if (rank === 0) Atomics.compareExchange(words, HEADER.size, 0, members.length)
      while (Atomics.load(words, HEADER.size) === 0 && performance.now() < wait.deadline)
        await new Promise((resolve) => setTimeout(resolve, 1))
      const size = Atomics.load(words, HEADER.size)
      const refuse = (message: string): never => {
        new Board(words, size).fail({ code: 'ERR_ARGUMENT', message, rank })
        ring(place.waiter, words, size)
        throw new ArgumentError(message, { rank })
      }
      if (size !== members.length) {
        refuse(`This group has ${size} ranks, but rank ${rank} joined with size ${members.length}; all ranks must give the same size`)
      }
      const twice = `Rank ${rank} joined this group twice; every rank joins once`
      const native = place.waiter === atomicsWaiter ? 1 : 2
      if (Atomics.compareExchange(words, HEADER.native, 0, native) === 3 - native) {
        refuse(
          `Rank ${rank} ${native === 1 ? 'has no' : 'has the'} native addon, unlike others of its group; RANKMESH_ADDON must be the same for all`,
        )
      }
      if (!memory.claim(rank) || !new Board(words, size).enter(rank)) refuse(twice)
      const wire = new SharedWire(place, name, memory, member)
      wire.#unhook = platform.onExit(() => wire.close())
      memory.onRival(() => wire.fail({ code: 'ERR_ARGUMENT', message: twice, rank }))
      await wire.control.exchange(new Uint8Array(0), wait)
      memory.done()
      return wire
    } catch (error) {
      memory.close()
      throw error
    } finally {
      unhook()
    }
  }

  pair(src: number, dst: number): SharedLane {
    const index = src * this.size + dst
    let lane = this.#pairs.get(index)
    if (!lane) {
      const layout = this.#layout.pairs[index] as Layout['control']
      lane = new SharedLane(this, layout, { members: [src, dst], rank: this.rank === src ? 0 : 1, copies: true })
      this.#pairs.set(index, lane)
    }
    return lane
  }

  reduce(array: WireArray, op: WireOp, call: string, wait: () => Wait): Promise<void> | undefined {
    this.note(call)
    this.#arrays ??= new ArrayReducer(this.control, this, this.#place.addon)
    return this.#arrays.reduce(array, op, wait)
  }

  async allocate(byteLength: number, wait: Wait): Promise<Uint8Array> {
    const pitch = Math.ceil(Math.max(1, byteLength) / 4096) * 4096
    const name = `${this.#name}.m${this.#allocations++}`
    const look = (): void => this.check([0])
    const memory = await orFail(this, () => this.#place.memory(name, pitch * this.size, this.rank === 0, wait, look))
    this.#memories.push(memory)
    const { words } = memory
    const blocks = this.members.map((_, r) => new Uint8Array(words.buffer, words.byteOffset + r * pitch, byteLength))
    const own = blocks[this.rank] as Uint8Array
    this.#arrays ??= new ArrayReducer(this.control, this, this.#place.addon)
    this.#arrays.add(this.#allocations, blocks)
    await this.control.exchange(new Uint8Array(0), wait) // everybody has it before anybody uses it
    memory.done()
    return own
  }

  split(ranks: readonly number[], name: string, wait: Wait): Promise<SharedWire> {
    const members = ranks.map((rank) => this.members[rank] as number)
    return SharedWire.connect(this.#place, `${this.#name}.${name}`, { rank: ranks.indexOf(this.rank), members, parent: this }, wait)
  }

  /** This group, or one it was split off, has ended for all. */
  get hasFailed(): boolean {
    return Atomics.load(this.words, HEADER.failure) !== 0 || (this.#parent?.hasFailed ?? false)
  }

  get failure(): RankmeshError | null {
    return this.#board.failure() ?? this.#parent?.failure ?? null
  }

  watch(listener: (failure: RankmeshError) => void): () => void {
    this.#watchers.add(listener)
    if (!this.#watching) {
      this.#watching = setInterval(() => this.#look(), WATCH_MS)
      ;(this.#watching as { unref?(): void }).unref?.()
    }
    return () => {
      this.#watchers.delete(listener)
      if (this.#watchers.size === 0) this.#stopWatching()
    }
  }

  note(call: string): void {
    if (!this.#closed) this.#board.note(this.rank, call)
  }

  history(): string {
    return this.#board.history(this.members)
  }

  /** Each rank's last calls, all that are kept. */
  record(): string[][] {
    return this.members.map((_, rank) => this.#board.calls(rank))
  }

  fail(failure: Failure): void {
    if (this.#board.fail(failure)) this.#ring()
  }

  leave(): void {
    if (this.#closed || this.#board.state(this.rank) === LEFT) return
    this.#board.leave(this.rank)
    this.#ring()
  }

  close(): void {
    if (this.#closed) return
    this.leave()
    this.#closed = true
    this.#unhook()
    this.#stopWatching()
    for (const memory of [...this.#memories, this.#memory]) memory.close()
  }

  get ended(): boolean {
    return this.#closed || this.hasFailed
  }

  check(missing: readonly number[]): void {
    if (this.#closed) {
      const rank = this.members[this.rank] as number
      throw new RankFailedError(`Rank ${rank} has closed its part of this group`, { rank })
    }
    const ended = this.failure
    if (ended) throw ended
    for (const rank of missing) {
      const name = this.members[rank] as number
      if (this.#board.state(rank) === LEFT) {
        throw new RankFailedError(`Rank ${name} has left the group and takes part in no more collectives`, { rank: name })
      }
      if (this.#died(rank)) {
        this.#tellDeath(name)
        throw this.failure
      }
    }
  }

  timeout(missing: readonly number[], { call, timeoutMs }: Wait): RankmeshError {
    const names = missing.map((rank) => this.members[rank] as number)
    const message = `Rank${names.length > 1 ? 's' : ''} ${names.join(', ')} did not arrive at ${call} within ${timeoutMs} ms. Last collectives: ${this.history()}`
    const rank = names[0] as number
    this.fail({ code: 'ERR_TIMEOUT', message, rank })
    return this.failure ?? new TimeoutError(message, { rank })
  }

  abort(wait: Wait): void {
    this.fail(stopped(this.members[this.rank] as number, wait))
  }

  mismatch(): RankmeshError {
    const calls = this.members.map((_, rank) => this.#board.calls(rank, 1)[0]?.replace(/^#\d+ /, '') ?? 'nothing')
    const told = this.members.map((name, rank) => `rank ${name} called ${calls[rank]}`).join(', ')
    const alike = calls.every((call) => call === calls[0])
    const message = alike
      ? `Ranks called ${calls[0]} with arguments that must agree and do not: a refused option on one of them, or arrays at different places of the group's memory`
      : `Ranks called different collectives: ${told}; all ranks of a group must make the same calls in the same order`
    return new CollectiveMismatchError(message, { rank: this.members.at(-1) as number })
  }

  #died(rank: number): boolean {
    return rank !== this.rank && this.#board.state(rank) === HERE && !this.#memory.alive(rank) && this.#board.state(rank) === HERE
  }

  #tellDeath(rank: number): void {
    const message = `Rank ${rank} died: its ${this.backend === 'thread' ? 'thread' : 'process'} is gone. Last collectives: ${this.history()}`
    this.fail({ code: 'ERR_RANK_FAILED', message, rank })
  }

  #ring(): void {
    ring(this.waiter, this.words, this.size)
  }

  #look(): void {
    const dead = this.failure ? -1 : this.members.findIndex((_, rank) => this.#died(rank))
    if (dead >= 0) this.#tellDeath(this.members[dead] as number)
    const { failure } = this
    if (!failure) return
    this.#stopWatching()
    for (const listener of this.#watchers) listener(failure)
    this.#watchers.clear()
  }

  #stopWatching(): void {
    clearInterval(this.#watching)
    this.#watching = undefined
  }
}

/** What fails on one rank alone would leave the others waiting: it ends the group they are in. */
async function orFail<T>(wire: SharedWire | null, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    const rank = wire?.members[wire.rank] as number
    const why = error instanceof Error ? `${error.name}: ${error.message}` : describe(error)
    wire?.fail({ code: 'ERR_RANK_FAILED', message: `Rank ${rank} failed: ${why}`, rank })
    throw error
  }
}

function ring(waiter: Waiter, words: Int32Array, size: number): void {
  const { control, data, pairs } = layoutOf(size)
  waiter.ring(words, HEADER.alarm, [control, data, ...pairs])
}
