// Runs a program once for each rank of a wire, as threads and processes of their own would: no rank sees the device of another.
import { Communicator } from '../../runtime/comm/communicator.ts'
import { WireHostComm } from '../../runtime/comm/wire-host.ts'
import { RankFailedError } from '../../runtime/core/errors.ts'
import type { Device } from '../../runtime/device/device.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import type { RankContext } from '../../runtime/scheduler/launch.ts'
import type { MemoryWire } from './memory-wire.ts'

/** Every rank gets a view of its device in `devices`. @throws what the first rank that failed by itself threw. */
export async function launchOver<T>(
  wires: readonly MemoryWire[],
  { devices, timeoutMs }: { devices: readonly Device[]; timeoutMs: number },
  main: (context: RankContext) => Promise<T> | T,
): Promise<T[]> {
  const stop = new AbortController()
  const errors: unknown[] = []
  const runRank = async (wire: MemoryWire): Promise<T | undefined> => {
    const host = new WireHostComm(wire, timeoutMs)
    try {
      const device = (devices[wire.rank] as WebGpuDevice).view()
      const comm = await Communicator.create(host, device)
      const result = await main({ rank: wire.rank, size: wire.size, device, comm, host, signal: stop.signal })
      comm.destroy()
      return result
    } catch (error) {
      errors.push(error)
      stop.abort(error)
      wire.die(error instanceof Error ? `${error.name}: ${error.message}` : String(error))
      host.close()
      return undefined
    }
  }
  const results = await Promise.all(wires.map(runRank))
  if (errors.length > 0) throw errors.find((error) => !(error instanceof RankFailedError)) ?? errors[0]
  return results as T[]
}
