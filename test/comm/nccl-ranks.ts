// Groups of CUDA ranks over NCCL for tests, on doubles of CUDA and NCCL: in one thread as launch has them, or each in a world of its own, as far as
// it can tell.
import { Communicator } from '../../runtime/comm/communicator.ts'
import type { GroupHost } from '../../runtime/comm/host.ts'
import { NcclComm } from '../../runtime/comm/nccl/comm.ts'
import { WireHostComm } from '../../runtime/comm/wire-host.ts'
import { RankFailedError } from '../../runtime/core/errors.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { type MemoryWire, memoryWires } from '../support/memory-wire.ts'

export interface NcclRank extends RankContext {
  device: CudaDevice
  nccl: NcclComm
}

/** Runs `main` for ranks of this thread, one on each of the devices. */
export function inThread<T>(devices: readonly CudaDevice[], main: (rank: NcclRank) => Promise<T>, timeoutMs = 20_000): Promise<T[]> {
  return launch({ ranks: devices.length, devices, timeoutMs }, async (context) => {
    const device = context.device as CudaDevice
    const nccl = await NcclComm.create(context.host as GroupHost, device)
    try {
      return await main({ ...context, device, nccl, comm: new Communicator(context.host, nccl, device) })
    } finally {
      // Not destroyed, which would take the rank's HostComm along.
      device.guards.clear()
    }
  })
}

/** The same, joined by a wire. @throws what the first rank that failed by itself threw. */
export async function overWire<T>(devices: readonly CudaDevice[], main: (rank: NcclRank) => Promise<T>, timeoutMs = 20_000): Promise<T[]> {
  const stop = new AbortController()
  const errors: unknown[] = []
  const runRank = async (wire: MemoryWire): Promise<T | undefined> => {
    const host = new WireHostComm(wire, timeoutMs)
    try {
      const device = (devices[wire.rank] as CudaDevice).view()
      const nccl = await NcclComm.create(host, device)
      const comm = new Communicator(host, nccl, device)
      const result = await main({ rank: wire.rank, size: wire.size, device, comm, nccl, host, signal: stop.signal })
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
  const results = await Promise.all(memoryWires(devices.length).map(runRank))
  if (errors.length > 0) throw errors.find((error) => !(error instanceof RankFailedError)) ?? errors[0]
  return results as T[]
}
