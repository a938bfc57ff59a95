// launch: runs one async function once per rank and gives each its rank, its device and its communicator.
import { Communicator } from '../comm/communicator.ts'
import { type HostComm, LocalHostComm } from '../comm/host.ts'
import { MAX_TIMEOUT_MS, Rendezvous } from '../comm/rendezvous.ts'
import { DEFAULT_TIMEOUT_MS, World } from '../comm/world.ts'
import {
  BackendUnavailableError,
  CollectiveMismatchError,
  checkInteger,
  describe,
  invalidArgument,
  RankFailedError,
} from '../core/errors.ts'
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
  const given = options ?? ({} as LaunchOptions)
  const { ranks, placement = 'local', device = 'webgpu', devices = [device], timeoutMs = DEFAULT_TIMEOUT_MS, signal } = given
  checkInteger('ranks', ranks, 1, MAX_RANKS)
  checkInteger('timeoutMs', timeoutMs, 1, MAX_TIMEOUT_MS)
  if (typeof main !== 'function') throw invalidArgument('main', 'an async function of the rank context', main)
  if (placement !== 'local') {
    throw new BackendUnavailableError(`Placement ${describe(placement)} is not built; this version has 'local'`)
  }
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
    if (failure && !(isEcho(failure.error) && !isEcho(error))) return
    failure = { error }
    stop.abort(error)
  }
  const onAbort = (): void => {
    for (let rank = 0; rank < ranks; rank++) fail(rank, signal?.reason)
  }
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
  const grace = graceAfter(stop.signal)
  try {
    signal?.throwIfAborted() // it may have been while devices were opened
    signal?.addEventListener('abort', onAbort, { once: true })
    const all = Promise.all(Array.from({ length: ranks }, (_, rank) => runRank(rank)))
    const results = await Promise.race([all, grace.over])
    if (failure) throw failure.error
    return results as T[]
  } finally {
    grace.cancel()
    signal?.removeEventListener('abort', onAbort)
    world.close()
    placed.dispose()
  }
}

/** What a rank hears of another's failure is no failure of its own. */
function isEcho(error: unknown): boolean {
  return error instanceof RankFailedError || (error instanceof CollectiveMismatchError && error.cause !== undefined)
}

/** `over` resolves some time after the signal aborts; never where it does not, or after `cancel`. */
function graceAfter(signal: AbortSignal): { over: Promise<void>; cancel(): void } {
  let timer: ReturnType<typeof setTimeout> | undefined
  const over = new Promise<void>((resolve) => {
    signal.addEventListener(
      'abort',
      () => {
        timer = setTimeout(resolve, GRACE_MS)
      },
      { once: true },
    )
  })
  return { over, cancel: () => clearTimeout(timer) }
}
