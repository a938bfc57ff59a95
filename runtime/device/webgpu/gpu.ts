// Gpu: one opened GPUDevice with all that lives as long as it does: memory pool, kernels, recorder, what it can do, why it failed.
import { BackendUnavailableError, DeviceError, type OutOfMemoryError, type RankmeshError } from '../../core/errors.ts'
import { KernelRegistry } from './kernel.ts'
import type { AdapterChoice, Platform } from './platform.ts'
import { BufferPool } from './pool.ts'
import { Recorder } from './recorder.ts'

/** Sizes of work that suit the adapter; a software adapter pays dearly for barriers and large workgroups. */
export interface Tuning {
  /** Invocations of a workgroup in kernels without barriers. */
  flat: number
  /** Invocations that share a row in kernels with a reduction. */
  row: number
  /** Invocations that share an attention head of one token. */
  attention: number
  /** Whether products go through workgroup memory (`matvec` for few tokens, `matmul_tiled`) or are blocked in registers (`matmul`). */
  tiled: boolean
  /** Invocations that share an output of `matvec`. */
  matvecLanes: number
}

const SOFTWARE: Tuning = { flat: 128, row: 4, attention: 4, matvecLanes: 1, tiled: false }
const HARDWARE: Tuning = { flat: 256, row: 256, attention: 32, matvecLanes: 16, tiled: true }

/** Limits asked for beyond WebGPU's defaults, as far as the adapter has them. */
const WANTED_LIMITS = ['maxBufferSize', 'maxStorageBufferBindingSize'] as const

export interface GpuInfo {
  /** The adapter's own name. */
  adapter: string
  software: boolean
  features: readonly string[]
}

export class Gpu {
  readonly device: GPUDevice
  readonly info: GpuInfo
  readonly tuning: Tuning
  readonly pool: BufferPool
  readonly kernels: KernelRegistry
  readonly recorder: Recorder
  #failure: RankmeshError | null = null
  readonly #listeners = new Set<(error: RankmeshError) => void>()
  readonly #keepAlive: unknown
  readonly #owned: boolean

  constructor(
    device: GPUDevice,
    info: GpuInfo,
    platform: Platform,
    { owned = false, keepAlive }: { owned?: boolean; keepAlive?: unknown } = {},
  ) {
    this.device = device
    this.info = info
    this.tuning = info.software ? SOFTWARE : HARDWARE
    this.#keepAlive = keepAlive
    this.#owned = owned
    this.pool = new BufferPool(device)
    this.kernels = new KernelRegistry(device)
    this.recorder = new Recorder(device, this.pool, platform.afterTurn)
    this.pool.onOutOfMemory = (error: OutOfMemoryError) => this.recorder.fault(error)
    this.kernels.onError = (message) => this.recorder.fault(new DeviceError(`${info.adapter} refused a kernel: ${message}`))
    // All that is done here is done in error scopes. What else happens on an injected device is its owner's affair.
    if (owned) {
      device.addEventListener('uncapturederror', (event) => {
        event.preventDefault()
        const { message } = (event as GPUUncapturedErrorEvent).error
        this.recorder.fault(new DeviceError(`${info.adapter} refused a command: ${message}`))
      })
    }
    device.lost.then(({ reason, message }) => {
      const what = reason === 'destroyed' ? 'was disposed' : `was lost (${reason}): ${message}`
      this.#fail(new DeviceError(`The WebGPU device on ${info.adapter} ${what}; open a new one to go on`))
    })
  }

  /** Why no more work can be done, once that is so. */
  get failure(): RankmeshError | null {
    return this.#failure
  }

  /** Tells of the device's loss or disposal, at once where it has happened. Returns how to stop listening. */
  onFailure(listener: (error: RankmeshError) => void): () => void {
    if (this.#failure) listener(this.#failure)
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Fails all pending work and frees the device's memory; an injected device stays its owner's. */
  dispose(): void {
    if (this.#failure) return
    this.#fail(new DeviceError(`The WebGPU device on ${this.info.adapter} was disposed; open a new one to go on`))
    this.pool.dispose()
    if (this.#owned) this.device.destroy()
    void this.#keepAlive
  }

  #fail(error: RankmeshError): void {
    if (this.#failure) return
    this.#failure = error
    this.recorder.fail(error)
    for (const listener of this.#listeners) listener(error)
  }
}

export async function openGpu(platform: Platform, choice: AdapterChoice): Promise<Gpu> {
  const { adapter, instance, software } = await platform.findAdapter(choice)
  const requiredLimits: Record<string, number> = {}
  for (const name of WANTED_LIMITS) requiredLimits[name] = adapter.limits[name]
  const features = [...adapter.features].filter((name) => name === 'timestamp-query' || name === 'shader-f16' || name === 'subgroups')
  const name = adapterName(adapter.info)
  const device = await adapter
    .requestDevice({ requiredLimits, requiredFeatures: features as GPUFeatureName[], label: 'rankmesh' })
    .catch((cause: unknown) => {
      const message = cause instanceof Error ? cause.message : String(cause)
      throw new BackendUnavailableError(`The adapter ${name} gave no device: ${message}`, { cause })
    })
  return new Gpu(device, { adapter: name, software, features }, platform, {
    owned: true,
    keepAlive: { instance, adapter },
  })
}

export function adapterName(info: GPUAdapterInfo): string {
  return info.description || [info.vendor, info.architecture, info.device].filter(Boolean).join(' ') || 'unnamed adapter'
}
