// launch: runs one async function once per rank and gives each its rank, its device and its communicator.
import { Communicator } from '../comm/communicator.ts'
import { DEFAULT_TIMEOUT_MS, type HostComm, LocalHostComm } from '../comm/host.ts'
import { Rendezvous, World } from '../comm/rendezvous.ts'
import { BackendUnavailableError, checkInteger, invalidArgument, RankFailedError } from '../core/errors.ts'
import type { Device } from '../device/device.ts'
import { place } from './placement.ts'

export interface LaunchOptions {
  /** 1 to 64. */
  ranks: number
  /** Where ranks run: `local` is this thread, all ranks as concurrent async functions. */
  placement?: 'local'
  /** The device of all ranks: a name for openDevice, or a device. Defaults to `webgpu`. */
  device?: string | Device
  /** Several devices: ranks take them in contiguous blocks. */
  devices?: readonly (string | Device)[]
  /** Milliseconds until a collective that misses a rank fails with ERR_TIMEOUT. */
  timeoutMs?: number
  /** Ends the program: pending collectives of all ranks fail. */
  signal?: AbortSignal
}

export interface RankContext {
  readonly rank: number
  readonly size: number
  readonly device: Device
  readonly comm: Communicator
  readonly host: HostComm
  /** Aborts when another rank has failed or the program is to end: stop waiting for things that are no collectives. */
  readonly signal: AbortSignal
}

export const MAX_RANKS = 64

/** After a rank has failed, the others get this long to end by themselves. */
const GRACE_MS = 1000

/**
 * Runs `main` for ranks 0 to ranks-1 and resolves with their results in rank order. Devices opened here are disposed at the end, so
 * results should be data, not tensors.
 * @throws what the first failing rank threw; its peers' pending collectives fail with ERR_RANK_FAILED. ERR_ARGUMENT,
 * ERR_BACKEND_UNAVAILABLE before any rank starts.
 */
export async function launch<T>(options: LaunchOptions, main: (context: RankContext) => Promise<T> | T): Promise<T[]> {
  const { ranks, placement = 'local', device = 'webgpu', devices = [device], timeoutMs = DEFAULT_TIMEOUT_MS, signal } = options
  checkInteger('ranks', ranks, 1, MAX_RANKS)
  checkInteger('timeoutMs', timeoutMs, 1, 2 ** 31 - 1)
  if (typeof main !== 'function') throw invalidArgument('main', 'an async function of the rank context', main)
  if (placement !== 'local') throw new BackendUnavailableError(`Placement '${placement}' is not built; this version has 'local'`)
  signal?.throwIfAborted()
  const placed = await place(ranks, devices)
  const world = new World(ranks, timeoutMs)
  const everybody = new Rendezvous(
    world,
    Array.from({ length: ranks }, (_, i) => i),
  )
  const stop = new AbortController()
  let failure: { error: unknown } | undefined
  const fail = (rank: number, error: unknown): void => {
    world.fail(rank, error)
    // What a rank hears of another's failure is no failure of its own.
    if (failure && !(failure.error instanceof RankFailedError && !(error instanceof RankFailedError))) return
    failure = { error }
    stop.abort(error)
  }
  const onAbort = (): void => {
    for (let rank = 0; rank < ranks; rank++) fail(rank, signal?.reason)
  }
  signal?.addEventListener('abort', onAbort, { once: true })
  const runRank = async (rank: number): Promise<T | undefined> => {
    const own = placed.devices[rank] as Device
    try {
      const host = new LocalHostComm(everybody, rank)
      const comm = await Communicator.create(host, own)
      const result = await main({ rank, size: ranks, device: own, comm, host, signal: stop.signal })
      world.leave(rank)
      return result
    } catch (error) {
      fail(rank, error)
      return undefined
    }
  }
  try {
    const all = Promise.all(Array.from({ length: ranks }, (_, rank) => runRank(rank)))
    const results = await Promise.race([all, graceAfter(stop.signal)])
    if (failure) throw failure.error
    return results as T[]
  } finally {
    signal?.removeEventListener('abort', onAbort)
    everybody.close()
    placed.dispose()
  }
}

/** Resolves some time after the signal aborts; never otherwise. */
function graceAfter(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    signal.addEventListener('abort', () => setTimeout(resolve, GRACE_MS), { once: true })
  })
}
