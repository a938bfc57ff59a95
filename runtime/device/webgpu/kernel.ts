// The kernel registry: a kernel's name, element types and override constants give a compiled pipeline, made once and labelled by its variant.
import { accessOf, type KernelName, type Prelude, program, type WeightPrelude } from './shaders.ts'

export interface Variant {
  name: KernelName
  element?: Prelude
  weight?: WeightPrelude
  /** WGSL `override` constants. */
  constants?: Readonly<Record<string, number | boolean>>
}

export interface Kernel {
  readonly id: number
  /** What was built, as `all_reduce f32 OP=0,WG=64`; the pipeline's label. */
  readonly label: string
  readonly access: string
  readonly layout: GPUBindGroupLayout
  readonly pipeline: GPUComputePipeline
}

/** What has been built for a GPUDevice, however often it is adopted. */
interface Built {
  readonly kernels: Map<string, Kernel>
  readonly modules: Map<string, GPUShaderModule>
  readonly layouts: Map<string, GPUBindGroupLayout>
}
const builtFor = new WeakMap<GPUDevice, Built>()

export class KernelRegistry {
  readonly #device: GPUDevice
  readonly #kernels: Built['kernels']
  readonly #modules: Built['modules']
  readonly #layouts: Built['layouts']
  /** Called with the device's answer when it refuses a kernel. */
  onError: (message: string) => void = () => {}

  constructor(device: GPUDevice) {
    const built = builtFor.get(device) ?? { kernels: new Map(), modules: new Map(), layouts: new Map() }
    builtFor.set(device, built)
    this.#device = device
    this.#kernels = built.kernels
    this.#modules = built.modules
    this.#layouts = built.layouts
  }

  get(variant: Variant): Kernel {
    const label = variantLabel(variant)
    const known = this.#kernels.get(label)
    if (known) return known
    const access = accessOf(variant.name)
    this.#device.pushErrorScope('validation')
    const layout = this.#layout(access)
    const constants: Record<string, number> = {}
    for (const [key, value] of Object.entries(variant.constants ?? {})) constants[key] = Number(value)
    const pipeline = this.#device.createComputePipeline({
      label,
      layout: this.#device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module: this.#module(variant), entryPoint: 'main', constants },
    })
    this.#device.popErrorScope().then(
      (error) => error && this.onError(`${label}: ${error.message}`),
      () => {}, // the device is lost, which is told elsewhere
    )
    const kernel: Kernel = { id: this.#kernels.size, label, access, layout, pipeline }
    this.#kernels.set(label, kernel)
    return kernel
  }

  #module({ name, element, weight }: Variant): GPUShaderModule {
    const label = [name, element, weight].filter(Boolean).join(' ')
    let module = this.#modules.get(label)
    if (!module) {
      module = this.#device.createShaderModule({ label, code: program(name, element, weight) })
      this.#modules.set(label, module)
    }
    return module
  }

  #layout(access: string): GPUBindGroupLayout {
    let layout = this.#layouts.get(access)
    if (!layout) {
      layout = this.#device.createBindGroupLayout({
        label: access,
        entries: [
          { binding: 0, visibility: GPUShaderStage.COMPUTE, buffer: { type: 'uniform', hasDynamicOffset: true } },
          ...[...access].map((kind, i) => ({
            binding: i + 1,
            visibility: GPUShaderStage.COMPUTE,
            buffer: { type: kind === 'w' ? ('storage' as const) : ('read-only-storage' as const) },
          })),
        ],
      })
      this.#layouts.set(access, layout)
    }
    return layout
  }
}

export function variantLabel({ name, element, weight, constants = {} }: Variant): string {
  const list = Object.keys(constants)
    .sort()
    .map((key) => `${key}=${Number(constants[key])}`)
  return [name, element, weight, list.join(',')].filter(Boolean).join(' ')
}
