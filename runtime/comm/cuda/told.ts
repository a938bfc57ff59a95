// Told: what the kernels of a group's ranks have told of waits that did not end well, as the error that then ends the group.
import { RankFailedError, type RankmeshError, TimeoutError } from '../../core/errors.ts'
import type { Guard } from '../../device/engine/device.ts'
import type { GroupHost } from '../host.ts'
import type { Doubt } from './doubt.ts'
import { EXPIRED, type PeerMemory } from './memory.ts'

export class Told {
  readonly #host: GroupHost
  readonly #memory: PeerMemory[] = []
  #failure: RankmeshError | null = null
  #alarmed = false

  constructor(host: GroupHost) {
    this.#host = host
  }

  add(memory: PeerMemory): void {
    this.#memory.push(memory)
  }

  /** Why the group has ended, as far as its kernels or its wire know; with it, the group ends for all. */
  look(): RankmeshError | null {
    if (this.#failure) return this.#failure
    const told = this.#memory.reduce((bits, memory) => bits | memory.told, 0)
    if (told === 0) return null
    this.#failure = this.#error(told)
    this.#host.end(this.#failure)
    return this.#failure
  }

  /** Kernels that wait end now. */
  alarm(): void {
    if (this.#alarmed) return
    this.#alarmed = true
    for (const memory of this.#memory) memory.alarm()
  }

  /** While a rank waits for its device: where another process has ended the group, kernels wait no longer. */
  guard(doubt: Doubt): Guard {
    return (read) => {
      const { wire } = this.#host
      if (wire?.failure) this.alarm()
      const stop = wire?.watch(() => this.alarm())
      const end = doubt.wait(read)
      return () => {
        stop?.()
        return end(this.look())
      }
    }
  }

  #error(told: number): RankmeshError {
    const { members, wire } = this.#host
    const missing = members.filter((_, rank) => told & (1 << rank))
    const history = wire ? ` Last collectives: ${wire.history()}` : ''
    if (missing.length === 0) {
      if (wire?.failure) return wire.failure
      return new RankFailedError(`The group was ended while its kernels waited for other ranks.${history}`)
    }
    const who = `Rank${missing.length > 1 ? 's' : ''} ${missing.join(', ')}`
    const by = told & EXPIRED ? 'in time' : 'in time for another rank, which told this one'
    const message = `${who} did not arrive ${by} at a collective on the devices; results since then are not written.${history}`
    return new TimeoutError(message, { rank: missing[0] as number })
  }
}
