// `rankmesh doctor`: what this machine offers to Rankmesh and whether it works, for people and for bug reports.
import { statfsSync } from 'node:fs'
import { arch, cpus, freemem, platform, release, totalmem } from 'node:os'
import type { CudaDeviceInfo } from '../core/addon.ts'
import { addonReport, loadAddon } from '../core/addon-node.ts'
import { RankmeshError } from '../core/errors.ts'
import { Tensor } from '../core/tensor.ts'
import { openDevice } from '../device/open.ts'
import type { WebGpuDevice } from '../device/webgpu/device.ts'
import { discoverRank } from '../scheduler/discovery.ts'
import { launch, type RankContext } from '../scheduler/launch.ts'

/**
 * What `--json` prints a list of; stable. Names: node, system, memory, launcher, /dev/shm, webgpu, webgpu:software, cuda:<index> or, where there
 * is none, cuda, addon, addon:<feature>, self-test:<placement>.
 */
interface Finding {
  name: string
  /** It is there, and it works. */
  found: boolean
  /** What it is, or why it is absent and what would bring it. */
  detail: string
  /** It should work and does not: doctor ends with 1. */
  failed?: true
  /** The code of the error by which it is absent or has failed. */
  code?: string
  /** Of a self-test, opening devices and starting ranks included. */
  milliseconds?: number
}

const PLACEMENTS = ['thread', 'process', 'local'] as const
type Placement = (typeof PLACEMENTS)[number]

/** @returns 1 where something that should work does not, else 0. */
export async function doctor(json: boolean): Promise<number> {
  const launcher = launcherFinding()
  // First of all: ranks in threads and processes run the program again up to their own test.
  const tests: Finding[] = []
  for (const placement of PLACEMENTS) tests.push(await selfTest(placement, launcher.found))
  const findings: Finding[] = [
    { name: 'node', found: true, detail: process.version },
    { name: 'system', found: true, detail: `${platform()} ${arch()} ${release()}, ${cpus().length} cores` },
    { name: 'memory', found: true, detail: `${gibibytes(totalmem())}, ${gibibytes(freemem())} free` },
    sharedMemory(),
    launcher,
    await inspect('webgpu'),
    await inspect('webgpu:software'),
    ...(await cudaFindings()),
    ...addonFindings(),
    ...tests,
  ]
  process.stdout.write(json ? `${JSON.stringify(findings, null, 2)}\n` : findings.map(line).join(''))
  return findings.some(({ failed }) => failed) ? 1 : 0
}

function line({ name, found, failed, detail, milliseconds }: Finding): string {
  const time = milliseconds === undefined ? '' : ` (${milliseconds} ms)`
  return `${failed ? 'BAD' : found ? 'yes' : 'no '}  ${name.padEnd(18)} ${detail}${time}\n`
}

async function inspect(name: string): Promise<Finding> {
  try {
    using device = (await openDevice(name)) as WebGpuDevice
    const { limits } = device.gpu.device
    const { features } = device.gpu.info
    const detail = `${device.description}${device.software ? ' (software)' : ''}; features: ${features.join(', ') || 'none'}; largest buffer ${(limits.maxStorageBufferBindingSize / 2 ** 20).toFixed(0)} MiB`
    return { name, found: true, detail }
  } catch (error) {
    return { name, found: false, ...told(error) }
  }
}

/** Each CUDA device, and whether it computes; one finding where there is none. */
async function cudaFindings(): Promise<Finding[]> {
  const addon = loadAddon()
  const feature = addon?.features().cuda ?? { available: false, detail: 'the native addon is not there' }
  if (!feature.available) return [{ name: 'cuda', found: false, detail: feature.detail }]
  const test = async ({ index, name, computeCapability, memoryBytes, multiprocessors }: CudaDeviceInfo): Promise<Finding> => {
    const detail = `${name}, compute capability ${computeCapability}, ${gibibytes(memoryBytes)}, ${multiprocessors} multiprocessors`
    try {
      using device = await openDevice(`cuda:${index}`)
      using x = Tensor.from([1, 2, 3], { device })
      using y = device.add(x, x)
      const [, sum] = (await y.data()) as Float32Array
      if (sum !== 4) return { name: `cuda:${index}`, found: false, failed: true, detail: `${detail}: 2 + 2 gave ${sum}` }
      return { name: `cuda:${index}`, found: true, detail: `${detail}, kernels ${device.description.replace(/^.*\((.*)\)$/, '$1')}` }
    } catch (error) {
      return { name: `cuda:${index}`, found: false, failed: true, ...told(error) }
    }
  }
  return Promise.all((addon?.cudaDevices?.() ?? []).map(test))
}

/** Where ranks in processes of one machine keep what they share; containers often give it 64 MiB. */
function sharedMemory(): Finding {
  const name = '/dev/shm'
  if (platform() !== 'linux') return { name, found: false, detail: `${platform()} has none; only ranks in processes on Linux use it` }
  try {
    const { blocks, bavail, bsize } = statfsSync(name)
    return { name, found: true, detail: `${gibibytes(blocks * bsize)}, ${gibibytes(bavail * bsize)} free` }
  } catch (error) {
    return { name, found: false, ...told(error) }
  }
}

function launcherFinding(): Finding {
  const name = 'launcher'
  try {
    const place = discoverRank(process.env)
    if (place === null) return { name, found: false, detail: 'this process was started by none (torchrun, mpirun, srun, rankmesh run)' }
    const { family, rank, size, localRank = '?', localSize = '?', masterAddr = '?', masterPort = '?', from } = place
    const where = `rank ${rank} of ${size}, ${localRank} of ${localSize} on this node, master ${masterAddr}:${masterPort}`
    return { name, found: true, detail: `${family}: ${where}; from ${from.join(', ')}` }
  } catch (error) {
    return { name, found: false, failed: true, ...told(error) }
  }
}

function addonFindings(): Finding[] {
  const { path, features, tried, command } = addonReport()
  if (path === null || features === null) {
    const tries = tried.map(({ what, outcome }) => `${what}: ${outcome}`).join('; ')
    return [{ name: 'addon', found: false, detail: `the native addon is optional, ${command} brings it; tried ${tries}` }]
  }
  const of = Object.entries(features) as [string, { available: boolean; detail: string }][]
  return [
    { name: 'addon', found: true, detail: path },
    ...of.map(([name, { available, detail }]) => ({ name: `addon:${name}`, found: available, detail })),
  ]
}

const TEST_RANKS = 2
const TEST_COUNT = 1000
const TEST_TIMEOUT_MS = 60_000

/** Two ranks, one all-reduce of tensors, one of host values. What is not there, with ERR_BACKEND_UNAVAILABLE, has not failed. */
async function selfTest(placement: Placement, launched: boolean): Promise<Finding> {
  const name = `self-test:${placement}`
  if (launched && placement !== 'local')
    return { name, found: false, detail: 'not tried: under a launcher, ranks are its processes; run doctor outside of it' }
  const start = performance.now()
  try {
    const wrong = await launch({ ranks: TEST_RANKS, placement, timeoutMs: TEST_TIMEOUT_MS }, wrongSums)
    const milliseconds = Math.round(performance.now() - start)
    if (wrong.some((count) => count > 0)) {
      return {
        name,
        found: false,
        failed: true,
        detail: `wrong sums on ranks ${wrong.map((count, rank) => `${rank}: ${count}`)}`,
        milliseconds,
      }
    }
    return { name, found: true, detail: `${TEST_RANKS} ranks added ${TEST_COUNT} elements on the device and on the host`, milliseconds }
  } catch (error) {
    const milliseconds = Math.round(performance.now() - start)
    const absent = error instanceof RankmeshError && error.code === 'ERR_BACKEND_UNAVAILABLE'
    return { name, found: false, ...told(error), milliseconds, ...(!absent && { failed: true as const }) }
  }
}

/** How many sums of two all-reduces are wrong on this rank. Small integers, so that every order gives the same bits. */
async function wrongSums({ rank, size, device, comm, host }: RankContext): Promise<number> {
  const values = (of: number): Float32Array => Float32Array.from({ length: TEST_COUNT }, (_, i) => (i * (of + 3)) % 101)
  const expected = values(0)
  for (let other = 1; other < size; other++) for (const [i, value] of values(other).entries()) expected[i]! += value
  using x = Tensor.from(values(rank), { device })
  using y = await comm.allReduce(x)
  const [onDevice, onHost] = [await y.data(), await host.allReduce(values(rank))]
  return expected.reduce((wrong, value, i) => wrong + Number(onDevice[i] !== value) + Number(onHost[i] !== value), 0)
}

function told(error: unknown): { detail: string; code?: string } {
  const code = (error as { code?: unknown } | null)?.code
  const detail = error instanceof Error ? error.message : String(error)
  return { detail: detail.replaceAll(/\s*\n\s*/g, ' '), ...(typeof code === 'string' && { code }) }
}

function gibibytes(bytes: number): string {
  return bytes < 2 ** 30 ? `${(bytes / 2 ** 20).toFixed(0)} MiB` : `${(bytes / 2 ** 30).toFixed(1)} GiB`
}
