// `rankmesh doctor`: what this machine offers to Rankmesh, for people and for bug reports.
import { arch, cpus, platform, release, totalmem } from 'node:os'
import { openDevice } from '../device/open.ts'
import type { WebGpuDevice } from '../device/webgpu/device.ts'

interface Finding {
  name: string
  found: boolean
  detail: string
}

export async function doctor(json: boolean): Promise<number> {
  const findings: Finding[] = [
    { name: 'node', found: true, detail: process.version },
    {
      name: 'system',
      found: true,
      detail: `${platform()} ${arch()} ${release()}, ${cpus().length} cores, ${(totalmem() / 2 ** 30).toFixed(0)} GiB`,
    },
    await inspect('webgpu'),
    await inspect('webgpu:software'),
    { name: 'addon', found: false, detail: 'the native addon (NCCL, CUDA IPC, shared memory, gloo) is not part of this version' },
  ]
  const text = json
    ? `${JSON.stringify(findings, null, 2)}\n`
    : findings.map(({ name, found, detail }) => `${found ? 'yes' : 'no '}  ${name.padEnd(16)} ${detail}\n`).join('')
  process.stdout.write(text)
  return 0
}

async function inspect(name: string): Promise<Finding> {
  try {
    using device = (await openDevice(name)) as WebGpuDevice
    const { limits } = device.gpu.device
    const { features } = device.gpu.info
    const detail = `${device.description}${device.software ? ' (software)' : ''}; features: ${features.join(', ') || 'none'}; largest buffer ${(limits.maxStorageBufferBindingSize / 2 ** 20).toFixed(0)} MiB`
    return { name, found: true, detail }
  } catch (error) {
    return { name, found: false, detail: error instanceof Error ? error.message : String(error) }
  }
}
