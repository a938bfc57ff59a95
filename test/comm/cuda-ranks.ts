// Groups of CUDA ranks for tests, whose kernels use each other's memory: each rank in a world of its own, as far as it can tell, with workspaces so
// small that many calls go in pieces.
import { Communicator } from '../../runtime/comm/communicator.ts'
import { CudaComm } from '../../runtime/comm/cuda/comm.ts'
import type { PeerRoom } from '../../runtime/comm/cuda/plan.ts'
import type { Home } from '../../runtime/comm/cuda/reach.ts'
import { WireHostComm } from '../../runtime/comm/wire-host.ts'
import { RankFailedError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import type { RankContext } from '../../runtime/scheduler/launch.ts'
import { control } from '../support/cuda.ts'
import { type MemoryWire, memoryWires } from '../support/memory-wire.ts'
import { sleep } from '../support/outcomes.ts'

/** Room for a row of 4097 float32. */
export const SMALL: PeerRoom = { dataBytes: 32 << 10, packetBytes: 4 << 10 }

export interface CudaRank extends RankContext {
  device: CudaDevice
  peers: CudaComm
}

/** How often memory is registered with the driver, once what nobody uses any more has gone from these devices. */
export async function registered(devices: readonly CudaDevice[]): Promise<number> {
  // What has ended is looked for where something new is asked for; groups leave behind their last kernels.
  for (const _ of [0, 1]) {
    for (const device of devices) await Tensor.full([1], 0, { device }).bytes()
    await sleep(50)
  }
  return control.counts().registered
}

/** Runs `main` for a rank on a view of each of the devices. @throws what the first rank that failed by itself threw. */
export async function overPeers<T>(
  devices: readonly CudaDevice[],
  main: (rank: CudaRank) => Promise<T>,
  {
    room = SMALL,
    memory,
    timeoutMs = 20_000,
    delays,
  }: { room?: PeerRoom; memory?: Home; timeoutMs?: number; delays?: { seed: number; delayMs: number } } = {},
): Promise<T[]> {
  const stop = new AbortController()
  const errors: unknown[] = []
  const runRank = async (wire: MemoryWire): Promise<T | undefined> => {
    const host = new WireHostComm(wire, timeoutMs)
    try {
      const device = (devices[wire.rank] as CudaDevice).view()
      const peers = await CudaComm.create(host, device, { room, memory })
      const comm = new Communicator(host, peers, device)
      const result = await main({ rank: wire.rank, size: wire.size, device, comm, peers, host, signal: stop.signal })
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
  const results = await Promise.all(memoryWires(devices.length, delays).map(runRank))
  if (errors.length > 0) throw errors.find((error) => !(error instanceof RankFailedError)) ?? errors[0]
  return results as T[]
}
