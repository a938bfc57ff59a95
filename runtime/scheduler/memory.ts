// How much memory each rank of a group may take: what is free where its device keeps its tensors, or what the program says.
import { platform } from '#platform'
import type { Communicator } from '../comm/communicator.ts'
import { ArgumentError, checkInteger } from '../core/errors.ts'
import type { Device } from '../device/device.ts'
import { WebGpuDevice } from '../device/webgpu/device.ts'

/** For each rank, bytes or `free`: as much as there is now; one word for all ranks. */
export type MemoryGiven = 'free' | readonly (number | 'free')[]

/** Part of the free memory that a model's weights and cache may take; the rest is for activations and everything else. */
const USABLE = 7 / 8

/**
 * Bytes for each rank's weights and cache, alike on all ranks; collective. What is free, less an eighth, is shared by the ranks that it is for:
 * of a CPU or software device by those on its machine, of a GPU by those on the device. WebGPU tells nobody how much of a GPU's memory is free:
 * there it is the largest buffer that the adapter makes, which may be far less; give a number where that is known.
 * @throws ERR_ARGUMENT for anything else, and in a page for a device that computes on the CPU.
 */
export async function rankMemory({ comm, device }: { comm: Communicator; device: Device }, given: MemoryGiven): Promise<number[]> {
  const { rank, size } = comm
  if (given !== 'free' && (!Array.isArray(given) || given.length !== size))
    throw new ArgumentError(`Expected "free" or ${size} numbers of bytes for memory, one a rank, but received ${JSON.stringify(given)}`)
  const own = given === 'free' ? 'free' : given[rank]
  if (own !== 'free') checkInteger(`memory[${rank}]`, own, 0)
  const all = await comm.host.allGather(own === 'free' ? freeOn(device, comm) : { bytes: own as number, machine: null })
  return all.map(({ bytes, machine }) => {
    if (machine === null) return bytes
    const beside = all.filter((other) => other.machine === machine)
    return Math.floor(Math.min(...beside.map((other) => other.bytes)) / beside.length)
  })
}

/** `machine`: the bytes are for all its ranks that give its name. */
function freeOn(device: Device, { deviceSize }: Communicator): { bytes: number; machine: string | null } {
  if (device instanceof WebGpuDevice && !device.software)
    return { bytes: Math.floor((USABLE * device.gpu.device.limits.maxBufferSize) / deviceSize), machine: null }
  const memory = platform.hostMemory()
  if (!memory) throw new ArgumentError('A page is not told how much memory is free; give numbers of bytes for memory')
  return { bytes: Math.floor(USABLE * memory.free), machine: memory.machine }
}
