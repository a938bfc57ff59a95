// Aborts as events: whoever listens on the diagnostics channel learns what ended a collective, and what every rank had been doing.
import { platform } from '#platform'
import { RankFailedError, type RankmeshError, TimeoutError } from '../core/errors.ts'
import { stopped } from './wire/stopped.ts'
import type { Wait, Wire } from './wire.ts'

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

/** A lane tells of its own deadline first, and who is missing; what runs out later has not had its turn. */
const LATER_MS = 300

/**
 * `work` on a wire, which may have to wait for its turn there: its signal and its deadline count from now. Either ends the group.
 * @throws the signal's reason, ERR_TIMEOUT, what `work` throws.
 */
export function underway<T>(wire: Wire, wait: Wait, work: () => Promise<T>): Promise<T> {
  const { signal, deadline, timeoutMs, call } = wait
  const rank = wire.members[wire.rank] as number
  if (signal?.aborted) {
    wire.fail(stopped(rank, wait))
    return Promise.reject(signal.reason)
  }
  const result = new Promise<T>((resolve, reject) => {
    const onAbort = (): void => {
      reject(signal?.reason)
      wire.fail(stopped(rank, wait))
    }
    const onLate = (): void => {
      const message = `${call} did not have its turn within ${timeoutMs} ms, as an earlier call still waits. Last collectives: ${wire.history()}`
      wire.fail({ code: 'ERR_TIMEOUT', message, rank })
      reject(wire.failure ?? new TimeoutError(message, { rank }))
    }
    const timer = setTimeout(onLate, Math.min(2 ** 31 - 1, Math.max(0, deadline - performance.now()) + LATER_MS))
    signal?.addEventListener('abort', onAbort, { once: true })
    const over = (): void => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
    }
    work().finally(over).then(resolve, reject)
  })
  return announced(wire, result)
}
