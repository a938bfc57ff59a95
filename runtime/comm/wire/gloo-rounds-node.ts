// Rounds of a GlooWire: each ends with its result, or with why the group has ended: an error that names the rank at fault.
import type { GlooError } from '../../core/addon.ts'
import { RankFailedError, type RankmeshError } from '../../core/errors.ts'
import type { Wait } from '../wire.ts'
import { stopped } from './stopped.ts'
import type { StoreBoard } from './store-board-node.ts'

/** How long a rank whose connections broke waits to hear who is at fault. */
const HEAR_MS = 2000
/** How long one that ran out of time waits for the others to tell their last calls. */
const TELL_MS = 300

/** One round of a lane, for which this rank waits. */
interface Round {
  lane: string
  /** Its number in the lane. */
  at: number
  /** The ranks that it needs. */
  peers: readonly number[]
  wait: Wait
}

export class Rounds {
  /** How many rounds of each lane this rank has joined. */
  readonly joined: Record<string, number> = {}
  readonly #board: StoreBoard
  readonly #rank: number
  readonly #members: readonly number[]
  readonly #all: readonly number[]
  readonly #under = new Set<Promise<unknown>>()
  /** This rank takes part no more. */
  left = false

  constructor(board: StoreBoard, rank: number, members: readonly number[]) {
    this.#board = board
    this.#rank = rank
    this.#members = members
    this.#all = members.map((_, peer) => peer).filter((peer) => peer !== rank)
  }

  /** Joins the next round of a lane by `work`, which is given what time there is; `peers` where not all others are needed. */
  run<T>(lane: string, wait: Wait, work: (timeoutMs: number) => Promise<T>, peers: readonly number[] = this.#all): Promise<T> {
    if (this.#board.failure) return Promise.reject(this.#board.failure)
    if (this.left) {
      const rank = this.#name(this.#rank)
      return Promise.reject(new RankFailedError(`Rank ${rank} has closed its part of this group`, { rank }))
    }
    const at = this.joined[lane] ?? 0
    this.joined[lane] = at + 1
    const result = this.#join({ lane, at, peers, wait }, work)
    this.#under.add(result)
    const over = (): void => void this.#under.delete(result)
    result.then(over, over)
    return result
  }

  /** When all rounds that have begun are over. */
  async over(): Promise<void> {
    await Promise.allSettled([...this.#under])
  }

  #join<T>(round: Round, work: (timeoutMs: number) => Promise<T>): Promise<T> {
    const { signal, deadline } = round.wait
    return new Promise<T>((resolve, reject) => {
      const onAbort = (): void => {
        void this.#board.end(stopped(this.#name(this.#rank), round.wait))
        reject(signal?.reason)
      }
      const onNews = (): void => {
        const absence = this.#board.failure ? null : this.#absence(round)
        if (absence) void this.#board.end(absence)
        const end = this.#board.failure ?? absence
        if (end) reject(end)
      }
      if (signal?.aborted) {
        onAbort()
        return
      }
      onNews()
      const stop = this.#board.listen(onNews)
      signal?.addEventListener('abort', onAbort, { once: true })
      work(Math.max(1, deadline - performance.now()))
        .then(resolve, async (error) => reject(await this.#explain(error, round)))
        .finally(() => {
          stop()
          signal?.removeEventListener('abort', onAbort)
        })
    })
  }

  /** The error of a round that a rank has left the group before. */
  #absence({ lane, at, peers, wait }: Round): RankFailedError | null {
    const gone = peers.find((peer) => this.#board.lacks(peer, lane, at))
    if (gone === undefined) return null
    const rank = this.#name(gone)
    const message = `Rank ${rank} has left the group and takes part in no more collectives; ${wait.call} cannot complete without it`
    return new RankFailedError(message, { rank })
  }

  /** The error of a round that gloo could not complete, the same on all ranks as far as can be. */
  async #explain(error: GlooError, round: Round): Promise<RankmeshError> {
    const board = this.#board
    const { call, timeoutMs } = round.wait
    const names = (error.missing ?? []).map((rank) => this.#name(rank))
    const rank = names[0] ?? this.#name(this.#rank)
    if (error.mismatched) {
      await board.ask(TELL_MS).catch(() => {})
      const message = `Ranks called different collectives in place of ${call}; all ranks of a group must make the same calls in the same order. Last collectives: ${board.history()}`
      return board.failure ?? board.end({ code: 'ERR_COLLECTIVE_MISMATCH', message, rank })
    }
    if (error.timedOut && !board.failure) {
      await board.ask(TELL_MS).catch(() => {})
      const who = names.length > 0 ? `Rank${names.length > 1 ? 's' : ''} ${names.join(', ')}` : 'Some rank'
      const message = `${who} did not arrive at ${call} within ${timeoutMs} ms. Last collectives: ${board.history()}`
      return board.failure ?? board.end({ code: 'ERR_TIMEOUT', message, rank })
    }
    await board.until(() => board.failure !== null, HEAR_MS)
    if (board.failure) return board.failure
    const message = `Rank ${rank} is gone: its connection broke in ${call} (${error.message})`
    return board.end({ code: 'ERR_RANK_FAILED', message, rank })
  }

  #name(rank: number): number {
    return this.#members[rank] as number
  }
}
