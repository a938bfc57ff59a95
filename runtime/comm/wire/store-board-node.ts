// StoreBoard: what the ranks of a group on several machines tell each other beside their rounds, through the store: failures, departures,
// and, when somebody asks, their last calls.
import { CollectiveMismatchError, type ErrorCode, RankFailedError, type RankmeshError, TimeoutError } from '../../core/errors.ts'
import { CallRecord } from '../call-record.ts'
import type { StoreClient } from './store-client-node.ts'
import { bytesText, type Fault, textBytes } from './store-protocol.ts'

/** Calls of each rank that a message tells of. */
const TOLD = 4
/** Letters of a call that others are told: 256 of them fit into a frame of the store. */
const CALL_LENGTH = 500

/** An error may be given for one. */
export interface Failure {
  code: ErrorCode
  message: string
  rank?: number
}

export class StoreBoard {
  readonly record: CallRecord = new CallRecord()
  readonly #store: StoreClient
  readonly #scope: string
  readonly #rank: number
  readonly #members: readonly number[]
  /** By rank: its last calls, as it told them. */
  readonly #told = new Map<number, readonly string[]>()
  /** By rank that has left: how many rounds of each lane it had joined. */
  readonly #left = new Map<number, Readonly<Record<string, number>>>()
  readonly #listeners = new Set<() => void>()
  readonly #stop: (() => void)[]
  #failure: RankmeshError | null = null

  /** `scope` names the group, below that of the group it was split off; `members` are the ranks in the world, by rank. */
  constructor(store: StoreClient, scope: string, rank: number, members: readonly number[]) {
    this.#store = store
    this.#scope = scope
    this.#rank = rank
    this.#members = members
    this.#stop = [
      store.onFault((fault) => this.#hear(fault)),
      store.onNotice(`${scope}/left`, (value) => {
        const { rank: gone, rounds } = JSON.parse(bytesText(value)) as { rank: number; rounds: Record<string, number> }
        this.#left.set(gone, rounds)
        this.#change()
      }),
      store.onNotice(`${scope}/tell`, () => void this.#tell().catch(() => {})),
    ]
    for (const fault of store.faults) this.#hear(fault)
  }

  /** What ended the group. */
  get failure(): RankmeshError | null {
    return this.#failure
  }

  /** Whether a rank has left before it joined a round of a lane. */
  lacks(rank: number, lane: string, round: number): boolean {
    const rounds = this.#left.get(rank)
    return rounds !== undefined && (rounds[lane] ?? 0) <= round
  }

  /** Whether all others have left. */
  get isLast(): boolean {
    return this.#left.size === this.#members.length - 1
  }

  /** Calls `listener` with each piece of news, a failure or a departure; returns how to stop that. */
  listen(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Whether `holds` comes to hold within `ms` milliseconds; the process stays for it, unless told otherwise. */
  until(holds: () => boolean, ms: number, stays = true): Promise<boolean> {
    if (holds()) return Promise.resolve(true)
    return new Promise((resolve) => {
      const end = (result: boolean): void => {
        clearTimeout(timer)
        stop()
        resolve(result)
      }
      const timer = setTimeout(end, ms, false)
      if (!stays) timer.unref()
      const stop = this.listen(() => {
        if (holds()) end(true)
      })
    })
  }

  /** Ends the group on all ranks; gives what ended it, which may be what another rank told first. */
  async end(failure: Failure): Promise<RankmeshError> {
    const { code, message, rank = this.#members[this.#rank] as number } = failure
    await this.#store.fail({ code, message, rank, scope: this.#scope }).catch(() => {})
    this.endHere({ code, message, rank })
    return this.#failure as RankmeshError
  }

  endHere(failure: Failure): void {
    if (this.#failure) return
    this.#failure = errorOf(failure)
    this.#change()
  }

  /** Tells the others that this rank takes part no more, and how many rounds of each lane it has joined. */
  async leave(rounds: Readonly<Record<string, number>>): Promise<void> {
    await this.#store.notify(`${this.#scope}/left`, textBytes(JSON.stringify({ rank: this.#rank, rounds })))
  }

  /** Has the others tell their last calls, those who do within `ms` milliseconds. */
  async ask(ms: number): Promise<void> {
    const others = this.#members.map((_, rank) => rank).filter((rank) => rank !== this.#rank)
    await this.#store.notify(`${this.#scope}/tell`, textBytes(''))
    const hear = async (rank: number): Promise<void> => {
      const value = await this.#store.get(`${this.#scope}/calls/${rank}`, ms)
      this.#told.set(rank, JSON.parse(bytesText(value)) as string[])
    }
    await Promise.allSettled(others.map(hear))
  }

  /** The last few calls of every rank that has told them. */
  history(): string {
    const told = (rank: number): string => {
      const calls = rank === this.#rank ? this.record.calls(TOLD) : this.#told.get(rank)?.slice(-TOLD)
      return calls ? calls.join(', ') || 'none' : 'not known'
    }
    return this.#members.map((name, rank) => `rank ${name}: ${told(rank)}`).join('; ')
  }

  /** By rank: all calls that are known, this rank's own and what others have told. */
  calls(): string[][] {
    return this.#members.map((_, rank) => (rank === this.#rank ? this.record.calls() : [...(this.#told.get(rank) ?? [])]))
  }

  close(): void {
    for (const stop of this.#stop) stop()
  }

  #hear(fault: Fault): void {
    const { scope, rank } = fault
    const ours = scope === undefined ? this.#members.includes(rank) : scope === this.#scope || this.#scope.startsWith(`${scope}/`)
    if (ours) this.endHere(fault)
  }

  async #tell(): Promise<void> {
    await this.#store.set(
      `${this.#scope}/calls/${this.#rank}`,
      textBytes(JSON.stringify(this.record.calls().map((call) => call.slice(0, CALL_LENGTH)))),
    )
  }

  #change(): void {
    for (const listener of [...this.#listeners]) listener()
  }
}

function errorOf({ code, message, rank }: Failure): RankmeshError {
  const details = rank === undefined ? {} : { rank }
  if (code === 'ERR_TIMEOUT') return new TimeoutError(message, details)
  if (code === 'ERR_COLLECTIVE_MISMATCH') return new CollectiveMismatchError(message, details)
  return new RankFailedError(message, details)
}
