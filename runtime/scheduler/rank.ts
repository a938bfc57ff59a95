// One rank of a program whose ranks are threads or processes: opens its device, joins the group, runs main, and tells the others how it ended.
import { Communicator } from '../comm/communicator.ts'
import type { Wire } from '../comm/wire.ts'
import { WireHostComm } from '../comm/wire-host.ts'
import { describe, RankmeshError } from '../core/errors.ts'
import { openDevice } from '../device/open.ts'
import { deviceNameOf, type Program } from './launch.ts'

/** Runs main as the rank that `wire` is. `stop` aborts when the program is to end. @throws what main threw. */
export async function runRank<T>(wire: Wire, program: Program<T>, stop: AbortSignal): Promise<T> {
  const { rank, size } = wire
  const failed = new AbortController()
  // What another rank's failure does to this one is told as that rank's.
  const tell = (error: unknown): void => {
    const other = error instanceof RankmeshError && error.rank !== undefined && error.rank !== rank
    const message = other ? error.message : `Rank ${rank} failed: ${nameOf(error)}`
    wire.fail({ code: 'ERR_RANK_FAILED', message, rank: other ? (error.rank as number) : rank })
  }
  const onStop = (): void => {
    tell(stop.reason)
    failed.abort(stop.reason)
  }
  if (stop.aborted) onStop()
  stop.addEventListener('abort', onStop, { once: true })
  const unwatch = wire.watch((failure) => failed.abort(failure))
  const host = new WireHostComm(wire, program.timeoutMs)
  try {
    using device = await openDevice(deviceNameOf(rank, program))
    try {
      const comm = await Communicator.create(host, device)
      const result = await program.main({ rank, size, device, comm, host, signal: failed.signal })
      host.close() // before the device goes: that this rank has returned is no failure of its device
      return result
    } catch (error) {
      tell(error) // likewise
      throw error
    }
  } catch (error) {
    tell(error)
    throw error
  } finally {
    unwatch()
    stop.removeEventListener('abort', onStop)
    host.close()
  }
}

function nameOf(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : describe(error)
}
