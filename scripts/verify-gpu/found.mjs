// What of CUDA and NCCL there is, as `rankmesh doctor` says it.
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'

const root = join(import.meta.dirname, '../..')

/** `obstacle` is why there is nothing to try; null where there is. */
export function inspect() {
  const path = process.env.RANKMESH_ADDON ? resolve(process.env.RANKMESH_ADDON) : join(root, 'build/Release/rankmesh.node')
  let addon
  try {
    addon = createRequire(import.meta.url)(path)
  } catch (error) {
    const obstacle = `the native addon is not there (\`npm run build:native\` brings it): ${error.message.split('\n')[0]}`
    return { lines: [`no   addon   ${obstacle}`], obstacle, devices: [], features: {}, addon: null }
  }
  const { cuda, nccl, shm } = addon.features()
  const features = { cuda, nccl, shm }
  const devices = cuda.available ? addon.cudaDevices() : []
  const lines = Object.entries(features).map(([name, { available, detail }]) => `${available ? 'yes' : 'no '}  ${name.padEnd(7)} ${detail}`)
  for (const { index, name, computeCapability, memoryBytes, multiprocessors } of devices) {
    const memory = `${(memoryBytes / 2 ** 30).toFixed(1)} GiB`
    lines.push(`yes  cuda:${index}  ${name}, compute capability ${computeCapability}, ${memory}, ${multiprocessors} multiprocessors`)
  }
  const obstacle = cuda.available ? (devices.length > 0 ? null : 'there is no CUDA device') : cuda.detail
  return { lines, obstacle, devices, features, addon }
}
