// CPU devices for tests: the addon's kernels for each kind of processor that this one can stand for, and the loops in TypeScript.
import type { Addon } from '../../runtime/core/addon.ts'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'

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

/** The native ones that differ from one another, then the loops. */
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
  const loops = CpuDevice.open(null)
  return [...found.values(), { name: loops.description, open: () => CpuDevice.open(null) }]
}
