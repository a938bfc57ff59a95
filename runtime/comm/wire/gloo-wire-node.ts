// GlooWire: the wire of ranks on several machines: rounds over TCP by the gloo library, failures and departures through the store.
import type { Addon, GlooError, GlooGroup } from '../../core/addon.ts'
import type { RankmeshError } from '../../core/errors.ts'
import type { Lane, Wait, Wire, WireArray, WireOp } from '../wire.ts'
import { Rounds } from './gloo-rounds-node.ts'
import { type Failure, StoreBoard } from './store-board-node.ts'
import type { StoreClient } from './store-client-node.ts'

export interface GlooWireOptions {
  addon: Addon
  /** Has joined the program. */
  store: StoreClient
  rank: number
  /** The ranks' names in the world, by rank. */
  members: readonly number[]
  /** The address of this machine that the others can reach; gloo listens there without a token. */
  host: string
  /** Names the group in the store; the same on all ranks, and used once. */
  scope: string
}

/** How long a rank that has left keeps its connections, for what is still on its way. */
const LINGER_MS = 5000
const OPS: Record<WireOp, 0 | 1 | 2> = { sum: 0, min: 1, max: 2 }

/** Connects to all members. @throws ERR_TIMEOUT that names who has not come, ERR_RANK_FAILED, the signal's reason. */
export async function connectGlooWire(options: GlooWireOptions, wait: Wait): Promise<GlooWire> {
  const { addon, store, rank, members, host, scope } = options
  const board = new StoreBoard(store, scope, rank, members)
  const connect = async (lane: string): Promise<GlooGroup> => {
    const prefix = `${scope}/${lane}/`
    let asked = ''
    const waited = {
      set: (key: string, value: Uint8Array): Promise<void> => store.set(key, value),
      get: (key: string, timeoutMs: number): Promise<Uint8Array> => {
        asked = key
        return store.get(key, timeoutMs)
      },
    }
    const timeoutMs = Math.max(1, wait.deadline - performance.now())
    try {
      return await addon.connectGloo({ rank, size: members.length, host, prefix, timeoutMs }, waited)
    } catch (error) {
      const peer = Number(/\d+$/.exec(asked)?.[0])
      throw Object.assign(error as GlooError, { missing: [peer], timedOut: performance.now() >= wait.deadline - 1 })
    }
  }
  const groups = members.length > 1 ? [connect('control'), connect('data')] : []
  const rounds = new Rounds(board, rank, members)
  try {
    const [control, data] = await rounds.run('connect', wait, () => Promise.all(groups), [])
    return new GlooWire(options, board, rounds, control ?? null, data ?? null)
  } catch (error) {
    for (const group of groups) group.then((late) => late.close()).catch(() => {})
    board.close()
    throw error
  }
}

export class GlooWire implements Wire {
  readonly backend = 'gloo'
  readonly about = 'TCP, by gloo'
  readonly isSameProcess = false
  readonly rank: number
  readonly size: number
  readonly members: readonly number[]
  readonly control: Lane
  readonly data: Lane
  readonly #options: GlooWireOptions
  readonly #board: StoreBoard
  readonly #rounds: Rounds
  readonly #control: GlooGroup | null
  readonly #data: GlooGroup | null
  readonly #pairs = new Map<string, Lane>()

  constructor(options: GlooWireOptions, board: StoreBoard, rounds: Rounds, control: GlooGroup | null, data: GlooGroup | null) {
    this.rank = options.rank
    this.members = options.members
    this.size = options.members.length
    this.#options = options
    this.#board = board
    this.#rounds = rounds
    this.#control = control
    this.#data = data
    this.control = this.#lane('control', control)
    this.data = this.#lane('data', data)
    board.listen(() => {
      if (board.failure) this.#closeGroups()
    })
  }

  pair(src: number, dst: number): Lane {
    const key = `${src} ${dst}`
    const known = this.#pairs.get(key)
    if (known) return known
    const rank = this.rank === src ? 0 : 1
    const peer = rank === 0 ? dst : src
    const tag = src < dst ? 0 : 1
    const exchange = async (bytes: Uint8Array, wait: Wait): Promise<readonly Uint8Array[]> => {
      const group = this.#data as GlooGroup
      const theirs = await this.#rounds.run(key, wait, (timeoutMs) => group.exchangePair(peer, tag, bytes, timeoutMs), [peer])
      return rank === 0 ? [bytes.slice(), theirs] : [theirs, bytes.slice()]
    }
    const lane = { rank, size: 2, exchange }
    this.#pairs.set(key, lane)
    return lane
  }

  reduce(array: WireArray, op: WireOp, call: string, wait: () => Wait): Promise<void> | undefined {
    this.note(call)
    const group = this.#control
    if (!group) return undefined
    const signature = hash(`${call}, ${op} of ${array.constructor.name}[${array.length}]`)
    return this.#rounds.run('control', wait(), (timeoutMs) => group.allReduce(array, OPS[op], timeoutMs, signature))
  }

  split(ranks: readonly number[], name: string, wait: Wait): Promise<GlooWire> {
    const members = ranks.map((rank) => this.members[rank] as number)
    const scope = `${this.#options.scope}/${name}`
    return connectGlooWire({ ...this.#options, rank: ranks.indexOf(this.rank), members, scope }, wait)
  }

  get failure(): RankmeshError | null {
    return this.#board.failure
  }

  watch(listener: (failure: RankmeshError) => void): () => void {
    const stop = this.#board.listen(() => {
      if (!this.#board.failure) return
      stop()
      listener(this.#board.failure)
    })
    return stop
  }

  note(call: string): void {
    this.#board.record.note(call)
  }

  history(): string {
    return this.#board.history()
  }

  record(): string[][] {
    return this.#board.calls()
  }

  fail(failure: Failure): void {
    void this.#board.end(failure)
    this.#board.endHere(failure)
  }

  leave(): void {
    if (this.#rounds.left) return
    this.#rounds.left = true
    void this.#depart()
  }

  close(): void {
    this.leave()
  }

  /** The connections stay for a while: closing them could cut off what others have not read yet. */
  async #depart(): Promise<void> {
    await this.#rounds.over()
    await this.#board.leave(this.#rounds.joined).catch(() => {})
    await this.#board.until(() => this.#board.isLast || this.failure !== null, LINGER_MS, false)
    this.#closeGroups()
    this.#board.close()
  }

  #closeGroups(): void {
    this.#control?.close()
    this.#data?.close()
  }

  #lane(name: string, group: GlooGroup | null): Lane {
    const exchange = (bytes: Uint8Array, wait: Wait): Promise<readonly Uint8Array[]> =>
      this.#rounds.run(name, wait, (timeoutMs) => (group ? group.exchange(bytes, timeoutMs) : Promise.resolve([bytes.slice()])))
    return { rank: this.rank, size: this.size, exchange }
  }
}

/** 32 bits that differ where texts do, by FNV-1a; not 0. */
function hash(text: string): number {
  let word = 0x811c9dc5
  for (let i = 0; i < text.length; i++) word = Math.imul(word ^ text.charCodeAt(i), 0x01000193)
  return word >>> 0 || 1
}
