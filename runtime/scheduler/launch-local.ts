// Placement `local`: all ranks as concurrent async functions of this thread.
import { Communicator } from '../comm/communicator.ts'
import { LocalHostComm } from '../comm/host.ts'
import { Rendezvous } from '../comm/rendezvous.ts'
import { World } from '../comm/world.ts'
import { CollectiveMismatchError, RankFailedError } from '../core/errors.ts'
import type { Device } from '../device/device.ts'
import type { Program } from './launch.ts'
import { place } from './placement.ts'

/** After a rank has failed, the others get this long to end by themselves. */
const GRACE_MS = 1000

export async function launchLocal<T>({ ranks, devices, timeoutMs, signal, main }: Program<T>): Promise<T[]> {
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
export function isEcho(error: unknown): boolean {
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
