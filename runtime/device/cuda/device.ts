// CudaDevice: one rank's view of a CUDA device, whose driver the native addon calls; each view has a stream of its own.
import type { Addon, CudaEngine } from '../../core/addon.ts'
import { BackendUnavailableError } from '../../core/errors.ts'
import { EngineDevice, Processor } from '../engine/device.ts'

export class CudaDevice extends EngineDevice {
  readonly engine: CudaEngine

  private constructor(processor: Processor, engine: CudaEngine) {
    super(processor)
    this.engine = engine
  }

  /** The device `index`, as the driver counts. @throws ERR_BACKEND_UNAVAILABLE with what is missing. */
  static open(addon: Addon | null, index: number): CudaDevice {
    const why = obstacle(addon)
    if (why !== null || !addon?.createCudaEngine) throw new BackendUnavailableError(`CUDA devices cannot be opened: ${why}`)
    let engine: CudaEngine
    try {
      engine = addon.createCudaEngine(index)
    } catch (cause) {
      throw new BackendUnavailableError(`cuda:${index} cannot be opened: ${cause instanceof Error ? cause.message : String(cause)}`, {
        cause,
      })
    }
    const description = `${engine.name} (${engine.kernels})`
    return new CudaDevice(new Processor(engine, { kind: 'cuda', name: `cuda:${index}`, description, software: false }), engine)
  }

  override view(): CudaDevice {
    return new CudaDevice(this.processor, this.engine)
  }
}

/** How many CUDA devices this machine has, as far as they can be used. */
export function countCudaDevices(addon: Addon | null): number {
  return obstacle(addon) === null ? (addon?.cudaDevices?.().length ?? 0) : 0
}

/** Why there is no CUDA here; null where there is. */
function obstacle(addon: Addon | null): string | null {
  if (!addon) return 'the native addon is not there; `npm run build:native` brings it, and `rankmesh doctor` says what was tried'
  const { available, detail } = addon.features().cuda
  return available ? null : detail
}
