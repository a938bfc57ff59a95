// CPU devices for tests: the addon's kernels for each kind of processor that this one can stand for, gpu.js, and the loops in TypeScript.
import type { Addon } from '../../runtime/core/addon.ts'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { type GpuJs, openGpuJs } from '../../runtime/device/cpu/gpu-js.ts'
import { LoopEngine } from '../../runtime/device/cpu/loops.ts'
import { platform } from '../../runtime/device/webgpu/platform-node.ts'
import { drawn } from './effort.ts'
import { seed } from './random.ts'

export interface NamedCpu {
  name: string
  open(): CpuDevice
}

const addon: Addon | null = loadAddon()
/** Why there is no native engine; empty where there is one. */
export const reason: string = addon?.createCpuEngine
  ? ''
  : `: skipped, no native engine (${addonReport()
      .tried.map(({ what, outcome }) => `${what}: ${outcome}`)
      .join('; ')})`

/** A device whose kernels are made for no more than `kind` of processor. */
function native(create: () => ReturnType<NonNullable<Addon['createCpuEngine']>>, kind: string): CpuDevice {
  const given = process.env.RANKMESH_CPU_KERNELS
  process.env.RANKMESH_CPU_KERNELS = kind
  try {
    return CpuDevice.open(create())
  } finally {
    if (given === undefined) delete process.env.RANKMESH_CPU_KERNELS
    else process.env.RANKMESH_CPU_KERNELS = given
  }
}

/** A device that multiplies by what it finds of gpu.js. */
export function overGpuJs(found: GpuJs): CpuDevice {
  return CpuDevice.open(new LoopEngine(openGpuJs(found)), { name: 'cpu:gpu.js' })
}

/** gpu.js, whose compiler to WebAssembly makes of kernels what `spoil` makes of their sources. */
export function spoilt(spoil: (source: string) => string): GpuJs {
  const { GPU } = platform.gpuJs()
  return {
    GPU: class extends GPU {
      readonly #mode: string

      constructor(options: ConstructorParameters<typeof GPU>[0]) {
        super(options)
        this.#mode = options.mode
      }

      override createKernel(...[source, options]: Parameters<InstanceType<typeof GPU>['createKernel']>): never {
        return super.createKernel(this.#mode === 'webasm' ? spoil(source) : source, options) as never
      }
    },
  }
}

/** The native ones that differ from one another, gpu.js in one of its modes, and last the loops. */
export function cpuDevices(): NamedCpu[] {
  const found = new Map<string, NamedCpu>()
  const create = addon?.createCpuEngine
  if (create) {
    for (const kind of ['', 'avx2', 'plain']) {
      const device = native(create, kind)
      found.set(device.description, { name: device.description, open: () => native(create, kind) })
      device.dispose()
    }
  }
  const modes = [() => overGpuJs(platform.gpuJs()), () => overGpuJs(spoilt(() => 'no kernel'))]
  const portable = [...drawn(modes, 1, seed()), () => CpuDevice.open(null)]
  for (const open of portable) {
    using device = open()
    found.set(device.description, { name: device.description, open })
  }
  return [...found.values()]
}
