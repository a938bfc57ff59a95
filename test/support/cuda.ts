// CUDA devices for tests, on machines without a GPU: doubles of CUDA's libraries emulate two. Import it before anything that opens a device.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach } from 'vitest'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { Control } from './cuda-control.ts'
import { buildDoubles, type Doubles, obstacle } from './cuda-doubles.ts'
import { seed } from './random.ts'

const folder = mkdtempSync(join(tmpdir(), 'rankmesh-cuda-double-'))
process.once('exit', () => rmSync(folder, { recursive: true, force: true }))

/** The double's control file of this process and those that it starts. */
export const control: Control = new Control(join(folder, 'control'))

/** Of the order in which streams, blocks and warps of the emulated devices take turns. */
export const turns: number = seed()
afterEach(({ task }) => {
  if (reason === '' && task.result?.state === 'fail') console.error(`seed of the emulated CUDA devices' turns: ${turns}`)
})

let why = obstacle()
export let doubles: Doubles | null = null
if (why === '') {
  doubles = await buildDoubles()
  process.env.RANKMESH_CUDA_PATH = doubles.cuda
  process.env.RANKMESH_CUBLASLT_PATH = doubles.cublasLt
  process.env.RANKMESH_NVML_PATH = doubles.nvml
  process.env.RANKMESH_CUDA_KERNELS = doubles.kernels
  process.env.RANKMESH_CUDA_DOUBLE = [process.env.RANKMESH_CUDA_DOUBLE, `seed ${turns}`].filter(Boolean).join(';')
  process.env.RANKMESH_CUDA_DOUBLE_CONTROL = control.path
  const addon = loadAddon()
  const cuda = addon?.features().cuda
  if (!addon)
    why = `no native addon (${addonReport()
      .tried.map(({ what, outcome }) => `${what}: ${outcome}`)
      .join('; ')})`
  else if (!cuda?.available) why = cuda?.detail ?? 'the addon knows no CUDA'
}

/** Why there are no emulated devices, for names of tests; empty where there are. */
export const reason: string = why === '' ? '' : `: skipped, ${why}`

export interface NamedCuda {
  name: string
  open(): Promise<Device>
}

/** The emulated devices, which reach each other's memory; none where there is a `reason`. */
export function cudaDevices(): NamedCuda[] {
  return reason === '' ? ['cuda:0', 'cuda:1'].map((name) => ({ name, open: () => openDevice(name) })) : []
}
