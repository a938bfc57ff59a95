// Reach: which devices' memory a CUDA device can use.
import { platform } from '#platform'
import type { CudaDevice } from '../../device/cuda/device.ts'

/** What ranks must know of each other's devices to use each other's memory; data. */
export interface Reach {
  /** The device's own number. */
  uuid: string
  /** Numbers of the devices whose memory it can use, its own among them. */
  peers: readonly string[]
  multiprocessors: number
}

export function reachOf({ engine }: CudaDevice): Reach {
  const { uuid, multiprocessors } = engine
  const others = platform.addon()?.cudaDevices?.() ?? []
  const peers = others.filter((other) => other.uuid !== uuid && engine.canAccessPeer(other.index)).map((other) => other.uuid)
  return { uuid, peers: [uuid, ...peers], multiprocessors }
}
