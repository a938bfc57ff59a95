// Aborts as events: whoever listens on the diagnostics channel learns what ended a collective, and what every rank had been doing.
import { platform } from '#platform'
import { RankFailedError, type RankmeshError, TimeoutError } from '../core/errors.ts'
import type { Wire } from './wire.ts'

/** `diagnostics_channel.subscribe(ABORT_CHANNEL, (event: AbortEvent) => ...)` */
export const ABORT_CHANNEL = 'rankmesh:abort'

/** A collective cannot complete since a rank has failed, left, or not come in time. */
export interface AbortEvent {
  error: RankmeshError
  /** The group's members by their ranks in the world. */
  members: readonly number[]
  /** By member, its last calls, up to 256, oldest first: `#12 host.barrier()`. Of ranks on other machines only what is known here. */
  calls: readonly (readonly string[])[]
}

export function isAbort(error: unknown): error is RankmeshError {
  return error instanceof RankFailedError || error instanceof TimeoutError
}

export function announceAbort(event: AbortEvent): void {
  platform.publish(ABORT_CHANNEL, event)
}

const told = new WeakSet<Wire>()

/** `work` on a wire; where it aborts, that is an event, one for each group and rank. */
export async function announced<T>(wire: Wire, work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    if (isAbort(error) && !told.has(wire)) {
      told.add(wire)
      announceAbort({ error, members: wire.members, calls: wire.record() })
    }
    throw error
  }
}
