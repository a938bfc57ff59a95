// HybridWire: the wire of ranks on several nodes, several on each: rounds inside each node, and among the nodes' leaders, its lowest ranks.
import { RankFailedError, type RankmeshError } from '../../core/errors.ts'
import type { Lane, Wait, Wire } from '../wire.ts'
import { stopped } from './stopped.ts'

export interface HybridParts {
  /** Among the ranks of this node, in ascending order. */
  local: Wire
  /** Among all ranks: for messages between two nodes, and to split wires off. Rounds of all go by way of the leaders. */
  across: Wire
  /** By node: its ranks, ascending; the same on all ranks. */
  nodes: readonly (readonly number[])[]
}

/**
 * How much longer the others wait, in milliseconds, among the leaders and for one's own leader: who waits for a rank itself says first that
 * it did not arrive.
 */
const LEADERS_LATER_MS = 250
const NODE_LATER_MS = 1000

/** Collective over all ranks of `across`. */
export async function connectHybridWire(parts: HybridParts, wait: Wait): Promise<Wire> {
  const { across, nodes } = parts
  const leads = nodes.some(([leader]) => leader === across.rank)
  const leaders = nodes.map(([leader]) => leader as number)
  const among = leads && leaders.length > 1 ? await across.split(leaders, 'leaders', wait) : null
  return new HybridWire(parts, among)
}

class HybridWire implements Wire {
  readonly backend = 'hybrid'
  readonly about: string
  readonly isSameProcess = false
  readonly rank: number
  readonly size: number
  readonly members: readonly number[]
  readonly control: HybridLane
  readonly data: HybridLane
  readonly #local: Wire
  readonly #across: Wire
  readonly #leaders: Wire | null
  readonly #nodes: readonly (readonly number[])[]
  readonly #mine: readonly number[]
  readonly #stop: (() => void)[]
  left = false

  constructor({ local, across, nodes }: HybridParts, leaders: Wire | null) {
    this.rank = across.rank
    this.size = across.size
    this.members = across.members
    this.about = `${local.about} inside a node, ${across.about} between ${nodes.length}`
    this.#local = local
    this.#across = across
    this.#leaders = leaders
    this.#nodes = nodes
    this.#mine = nodes.find((ranks) => ranks.includes(across.rank)) as readonly number[]
    this.control = new HybridLane(across, nodes, local.control, leaders?.control ?? null, this)
    this.data = new HybridLane(across, nodes, local.data, leaders?.data ?? null, this)
    this.#stop = this.#levels.map((level) => level.watch((failure) => this.forward(failure)))
  }

  pair(src: number, dst: number): Lane {
    const [from, to] = [this.#mine.indexOf(src), this.#mine.indexOf(dst)]
    return from >= 0 && to >= 0 ? this.#local.pair(from, to) : this.#across.pair(src, dst)
  }

  /** Ranks of one node get a wire of that node; one rank of each of several, one between nodes; else such a wire as this. */
  async split(ranks: readonly number[], name: string, wait: Wait): Promise<Wire> {
    const parts = this.#nodes
      .map((node) => ranks.flatMap((rank, i) => (node.includes(rank) ? [i] : [])))
      .filter((indices) => indices.length > 0)
    const mine = parts.find((indices) => indices.some((i) => ranks[i] === this.rank)) as number[]
    const inside = mine.map((i) => this.#mine.indexOf(ranks[i] as number))
    if (parts.length === 1) return this.#local.split(inside, name, wait)
    if (parts.every((indices) => indices.length === 1)) return this.#across.split(ranks, name, wait)
    const [local, across] = await Promise.all([this.#local.split(inside, name, wait), this.#across.split(ranks, name, wait)])
    return connectHybridWire({ local, across, nodes: parts }, wait)
  }

  get failure(): RankmeshError | null {
    for (const { failure } of this.#levels) if (failure) return failure
    return null
  }

  watch(listener: (failure: RankmeshError) => void): () => void {
    const stops = this.#levels.map((level) =>
      level.watch((failure) => {
        stop()
        listener(failure)
      }),
    )
    const stop = (): void => {
      for (const each of stops) each()
    }
    return stop
  }

  note(call: string): void {
    this.#local.note(call)
    this.#across.note(call)
  }

  history(): string {
    return `${this.#local.history()}; of all ranks: ${this.#across.history()}`
  }

  /** All that the ranks of this node have called, and what others have told. */
  record(): readonly (readonly string[])[] {
    const [here, told] = [this.#local.record(), this.#across.record()]
    return this.members.map((_, rank) => here[this.#mine.indexOf(rank)] ?? told[rank] ?? [])
  }

  fail(failure: Parameters<Wire['fail']>[0]): void {
    for (const level of this.#levels) level.fail(failure)
  }

  leave(): void {
    this.left = true
    this.#end((level) => level.leave())
  }

  close(): void {
    this.left = true
    for (const stop of this.#stop) stop()
    this.#end((level) => level.close())
  }

  /** Where it hears of failures: across first, for what it says holds for all nodes. */
  get #levels(): Wire[] {
    return [this.#across, this.#local, ...(this.#leaders ? [this.#leaders] : [])]
  }

  /** Tells every level what ended one of them. */
  forward({ code, message, rank = this.members[this.rank] as number }: RankmeshError): void {
    this.fail({ code: code === 'ERR_TIMEOUT' ? code : 'ERR_RANK_FAILED', message, rank })
  }

  /** Once the rounds that this rank has joined are over. */
  #end(how: (level: Wire) => void): void {
    void Promise.all([this.control.over(), this.data.over()]).then(() => this.#levels.forEach(how))
  }
}

/**
 * Every round is a round inside the node, one among the leaders of what the nodes have, and one in which the leader hands the others' bytes
 * to its node.
 */
class HybridLane implements Lane {
  readonly rank: number
  readonly size: number
  readonly #nodes: readonly (readonly number[])[]
  readonly #local: Lane
  readonly #leaders: Lane | null
  readonly #group: HybridWire
  #last: Promise<unknown> = Promise.resolve()

  constructor(across: Wire, nodes: readonly (readonly number[])[], local: Lane, leaders: Lane | null, group: HybridWire) {
    this.rank = across.rank
    this.size = across.size
    this.#nodes = nodes
    this.#local = local
    this.#leaders = leaders
    this.#group = group
  }

  exchange(bytes: Uint8Array, wait: Wait): Promise<readonly Uint8Array[]> {
    if (this.#group.left) {
      const rank = this.#group.members[this.rank] as number
      return Promise.reject(new RankFailedError(`Rank ${rank} has closed its part of this group`, { rank }))
    }
    const { signal } = wait
    const onAbort = (): void => this.#group.fail(stopped(this.#group.members[this.rank] as number, wait))
    if (signal?.aborted) onAbort()
    signal?.addEventListener('abort', onAbort, { once: true })
    const result = this.#last
      .then(() => this.#exchange(bytes, { ...wait, signal: undefined })) // its end ends every level, so that none need know the signal
      .catch((error) => {
        throw signal?.aborted ? signal.reason : error
      })
      .finally(() => signal?.removeEventListener('abort', onAbort))
    this.#last = result.catch(() => {})
    return result
  }

  /** When all rounds that have begun are over. */
  async over(): Promise<void> {
    await this.#last
  }

  async #exchange(bytes: Uint8Array, wait: Wait): Promise<readonly Uint8Array[]> {
    const { failure } = this.#group
    if (failure) throw failure
    try {
      const own = this.#nodes.findIndex((ranks) => ranks.includes(this.rank))
      const inside = await this.#local.exchange(bytes, wait)
      const here = inside.map((each) => each.slice()) // the next round of the lane is part of this one
      const packed = this.#leaders ? await this.#leaders.exchange(pack(here), later(wait, LEADERS_LATER_MS)) : []
      const others = packed.filter((_, node) => node !== own)
      const [handed] = await this.#local.exchange(pack(others), later(wait, NODE_LATER_MS))
      const remote = unpack(handed as Uint8Array)
      const result: Uint8Array[] = Array(this.size)
      for (const [node, ranks] of this.#nodes.entries()) {
        const theirs = node === own ? here : unpack(remote[node < own ? node : node - 1] as Uint8Array)
        ranks.forEach((rank, i) => {
          result[rank] = theirs[i] as Uint8Array
        })
      }
      return result
    } catch (error) {
      this.#group.forward(error as RankmeshError)
      throw error
    }
  }
}

function later(wait: Wait, ms: number): Wait {
  return { ...wait, deadline: wait.deadline + ms }
}

/** Parts one behind another, behind their number and lengths (u32). */
function pack(parts: readonly Uint8Array[]): Uint8Array {
  const head = 4 + 4 * parts.length
  const bytes = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, head))
  const view = new DataView(bytes.buffer)
  view.setUint32(0, parts.length, true)
  let at = head
  for (const [i, part] of parts.entries()) {
    view.setUint32(4 + 4 * i, part.byteLength, true)
    bytes.set(part, at)
    at += part.byteLength
  }
  return bytes
}

function unpack(bytes: Uint8Array): Uint8Array[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const count = view.getUint32(0, true)
  let at = 4 + 4 * count
  return Array.from({ length: count }, (_, i) => {
    const length = view.getUint32(4 + 4 * i, true)
    at += length
    return bytes.subarray(at - length, at)
  })
}
