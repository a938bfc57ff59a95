// What every kind of device group does alike: run collectives in turn, count what crosses a wire, and end where a rank's part fails.
import { CollectiveMismatchError, RankFailedError } from '../core/errors.ts'
import type { GroupHost } from './host.ts'
import type { MeetOptions } from './rendezvous.ts'

/** Some ranks' devices, as a collective sees them through its scope `S`. */
export interface Turns<S> {
  /** Runs a collective once those before it have ended, so that ranks may start several without awaiting each. */
  run<R>(call: string, options: MeetOptions, action: (scope: S) => Promise<R>): Promise<R>
}

/** What a rank has sent to the others over the wire that joins them. */
export interface Traffic {
  /** Rounds that this rank took part in. */
  crossings: number
  bytes: number
}

/**
 * What a rank does once all have joined a call. Over a wire the others would wait for the bytes of a rank whose part fails, so that ends the
 * group, with ERR_RANK_FAILED for them; except for ERR_COLLECTIVE_MISMATCH, which every rank finds alike before anything is exchanged.
 */
export async function orEnd<R>(host: GroupHost, call: string, work: Promise<R>): Promise<R> {
  try {
    return await work
  } catch (error) {
    if (host.wire && !host.wire.failure && !(error instanceof CollectiveMismatchError)) {
      const rank = host.members[host.rank] as number
      const why = error instanceof Error ? error.message : String(error)
      host.end(new RankFailedError(`Rank ${rank} failed in ${call}: ${why}`, { rank, cause: error }))
    }
    throw error
  }
}

/** By device, the end of its rank's last call. */
const last = new WeakMap<object, Promise<void>>()

/**
 * Runs `body` with the end of the calls that this device's rank made before it, whatever groups they are of: what waits for other ranks on the
 * device itself must go there in the order of the program, or a stream that has two collectives in another order than a peer's waits for ever.
 */
export async function inOrderOfCalls<R>(device: object, body: (before: Promise<void> | undefined) => Promise<R>): Promise<R> {
  const before = last.get(device)
  let done = (): void => {}
  last.set(
    device,
    new Promise((resolve) => {
      done = resolve
    }),
  )
  try {
    return await body(before)
  } finally {
    done()
  }
}
