// Opens a device by the name people know it by: `cpu`, `cpu:gpu.js`, `cuda:1`, `webgpu`, `webgpu:1`, `webgpu:software`, `webgpu:<part of the adapter's name>`.
import { platform } from '#platform'
import { invalidArgument } from '../core/errors.ts'
import { CpuDevice } from './cpu/device.ts'
import { openGpuJs } from './cpu/gpu-js.ts'
import { LoopEngine } from './cpu/loops.ts'
import { CudaDevice } from './cuda/device.ts'
import type { Device } from './device.ts'
import { WebGpuDevice } from './webgpu/device.ts'

/**
 * @throws ERR_ARGUMENT for a name of no kind of device, ERR_BACKEND_UNAVAILABLE where it is absent, with what was tried.
 * The variable RANKMESH_ADAPTER (`software`, an index, part of a name) stands in where the name is just `webgpu`. With RANKMESH_PIN=1 each
 * rank's thread on a CPU device stays on a processor core of its own, as far as there are. Where the addon is not built, `cpu` runs loops in
 * TypeScript; `cpu:gpu.js` multiplies by the npm package gpu.js there and everywhere, which is slower than they are (`npm run bench -- loops`).
 */
export async function openDevice(name: string): Promise<Device> {
  const [kind, rest] = typeof name === 'string' ? split(name) : ['', undefined]
  if (kind === 'cuda' && /^\d*$/.test(rest ?? '')) return CudaDevice.open(platform.addon(), Number(rest ?? 0))
  if (kind === 'cpu' && !rest)
    return CpuDevice.open(platform.addon()?.createCpuEngine?.() ?? null, { pinned: platform.env('RANKMESH_PIN') === '1' })
  if (name === 'cpu:gpu.js') return CpuDevice.open(new LoopEngine(openGpuJs(platform.gpuJs())), { name })
  if (kind !== 'webgpu')
    throw invalidArgument(
      'device',
      "'webgpu', 'cpu', 'cpu:gpu.js', 'cuda', 'cuda:<index>', 'webgpu:<index>', 'webgpu:software' or 'webgpu:<adapter name>'",
      name,
    )
  const which = rest ?? platform.env('RANKMESH_ADAPTER')
  if (which === undefined || which === '') return WebGpuDevice.open(platform, {}, 'webgpu:0')
  if (which === 'software') return WebGpuDevice.open(platform, { software: true }, 'webgpu:software')
  const adapter = /^\d+$/.test(which) ? Number(which) : which
  // Index 0 is the system's default adapter, software included where there is no other.
  return WebGpuDevice.open(platform, adapter === 0 ? {} : { adapter }, `webgpu:${which}`)
}

/** A device over a GPUDevice that the program already has; the program goes on owning it. */
export function adoptDevice(device: GPUDevice, options?: { name?: string; software?: boolean }): Device {
  return WebGpuDevice.adopt(platform, device, options)
}

function split(name: string): [string, string | undefined] {
  const at = name.indexOf(':')
  return at < 0 ? [name, undefined] : [name.slice(0, at), name.slice(at + 1)]
}
