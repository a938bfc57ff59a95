// Wires of ranks in one thread, made of nothing but promises: for tests of what is built on wires.

import type { Lane, Wait, Wire } from '../../runtime/comm/wire.ts'
import { RankFailedError, type RankmeshError, TimeoutError } from '../../runtime/core/errors.ts'

interface Round {
  bytes: (Uint8Array | undefined)[]
  resolve: ((all: Uint8Array[]) => void)[]
}

/** What the members of a group share. */
class Shared {
  readonly members: readonly number[]
  readonly rounds: Map<string, Round[]> = new Map()
  readonly parts: Map<string, Shared> = new Map()
  readonly left: Set<number> = new Set()
  readonly listeners: Set<() => void> = new Set()
  failure: RankmeshError | null = null

  constructor(members: readonly number[]) {
    this.members = members
  }

  change(): void {
    for (const listener of [...this.listeners]) listener()
  }
}

/** One wire for each member. What a round gives is spoiled when its rank begins the next one of the lane, as a lane allows. */
export function fakeWires(members: readonly number[]): FakeWire[] {
  const shared = new Shared(members)
  return members.map((_, rank) => new FakeWire(shared, rank))
}

export class FakeWire implements Wire {
  readonly backend = 'thread'
  readonly about = 'promises'
  readonly isSameProcess = true
  readonly rank: number
  readonly size: number
  readonly members: readonly number[]
  readonly control: Lane
  readonly data: Lane
  readonly calls: string[] = []
  readonly #shared: Shared

  constructor(shared: Shared, rank: number) {
    this.#shared = shared
    this.rank = rank
    this.members = shared.members
    this.size = shared.members.length
    const all = shared.members.map((_, i) => i)
    this.control = this.#lane('control', all)
    this.data = this.#lane('data', all)
  }

  pair(src: number, dst: number): Lane {
    return this.#lane(`${src} ${dst}`, [src, dst])
  }

  async split(ranks: readonly number[], name: string, wait: Wait): Promise<Wire> {
    const { parts, members } = this.#shared
    const key = `${name}: ${ranks}`
    const part = parts.get(key) ?? new Shared(ranks.map((rank) => members[rank] as number))
    parts.set(key, part)
    const wire = new FakeWire(part, ranks.indexOf(this.rank))
    await wire.control.exchange(new Uint8Array(0), wait)
    return wire
  }

  get failure(): RankmeshError | null {
    return this.#shared.failure
  }

  watch(listener: (failure: RankmeshError) => void): () => void {
    const look = (): void => {
      if (!this.failure) return
      stop()
      listener(this.failure)
    }
    const stop = (): void => void this.#shared.listeners.delete(look)
    this.#shared.listeners.add(look)
    return stop
  }

  note(call: string): void {
    this.calls.push(call)
  }

  history(): string {
    return this.calls.join(', ')
  }

  record(): string[][] {
    return this.members.map((_, rank) => (rank === this.rank ? this.calls : []))
  }

  fail({ code, message, rank }: Parameters<Wire['fail']>[0]): void {
    if (this.#shared.failure) return
    this.#shared.failure = code === 'ERR_TIMEOUT' ? new TimeoutError(message, { rank }) : new RankFailedError(message, { rank })
    this.#shared.change()
  }

  leave(): void {
    this.#shared.left.add(this.rank)
    this.#shared.change()
  }

  close(): void {
    this.leave()
  }

  #lane(name: string, ranks: readonly number[]): Lane {
    const shared = this.#shared
    const me = ranks.indexOf(this.rank)
    const rounds = shared.rounds.get(name) ?? []
    shared.rounds.set(name, rounds)
    let next = 0
    let given: Uint8Array[] = []
    const exchange = (bytes: Uint8Array, wait: Wait): Promise<readonly Uint8Array[]> => {
      for (const old of given) old.fill(0xee)
      const at = next++
      rounds[at] ??= { bytes: ranks.map(() => undefined), resolve: [] }
      const round = rounds[at]
      let look = (): void => {}
      let timer: ReturnType<typeof setTimeout> | undefined
      const came = new Promise<Uint8Array[]>((resolve, reject) => {
        round.bytes[me] = bytes.slice()
        round.resolve[me] = resolve
        look = () => {
          const gone = ranks.find((rank, i) => shared.left.has(rank) && !round.bytes[i])
          if (shared.failure) reject(shared.failure)
          else if (gone !== undefined)
            reject(new RankFailedError(`Rank ${this.members[gone]} has left`, { rank: this.members[gone] as number }))
        }
        const expire = (): void => {
          const absent = ranks.filter((_, i) => !round.bytes[i]).map((rank) => this.members[rank] as number)
          this.fail({ code: 'ERR_TIMEOUT', message: `Rank ${absent} did not arrive at ${wait.call}`, rank: absent[0] as number })
        }
        timer = setTimeout(expire, wait.deadline - performance.now())
        wait.signal?.addEventListener('abort', () => {
          reject(wait.signal?.reason)
          this.fail({ code: 'ERR_RANK_FAILED', message: 'told to stop', rank: this.members[this.rank] as number })
        })
        if (ranks.every((_, i) => round.bytes[i]))
          for (const done of round.resolve) done(round.bytes.map((each) => (each as Uint8Array).slice()))
      })
      shared.listeners.add(look)
      look()
      const over = (): void => {
        clearTimeout(timer)
        shared.listeners.delete(look)
      }
      came.then(over, over)
      return came.then((all) => {
        given = all
        return all
      })
    }
    return { rank: me, size: ranks.length, exchange }
  }
}
