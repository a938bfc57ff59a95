// CUDA ranks in two processes, which share their devices' memory: the bits of ranks in one thread, nothing through the host, and a process that dies.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import type { Device } from '../../runtime/device/device.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { bundle } from '../support/bundle.ts'
import { control, cudaDevices, reason } from '../support/cuda.ts'
import { seed } from '../support/random.ts'
import { collectives, type Found } from './cuda-program.ts'

const shm = loadAddon()?.features().shm
const absent = reason || (shm?.available ? '' : `: skipped, ${shm?.detail}`)
const program = absent === '' ? await bundle('test/comm/cuda-program.ts') : ''
const devices: Device[] = await Promise.all(cudaDevices().map(({ open }) => open()))
afterAll(() => {
  for (const device of devices) device.dispose()
})
afterEach(() => control.plant('delay 1 0;peers 1'))
const start = seed()

/** The line that rank 0 writes. */
async function run<T>(name: string, plan: { devices: string[]; start: number }): Promise<T> {
  const env = { ...process.env, RANKMESH_ADDON: addonReport().path ?? 'off' }
  const child = spawn(process.execPath, [program, name, JSON.stringify(plan)], { env, timeout: 100_000 })
  let [out, err] = ['', '']
  child.stdout.on('data', (chunk) => {
    out += chunk
  })
  child.stderr.on('data', (chunk) => {
    err += chunk
  })
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null]
  if (code !== 0 || out === '') throw new Error(`${err.slice(-2000).trim()} (${signal ?? `exit code ${code}`})`)
  return JSON.parse(out.split('\n')[0] as string) as T
}

describe.skipIf(absent !== '')(`two processes (seed ${start})${absent}`, () => {
  it.each([[['cuda:0', 'cuda:1']], [['cuda:0']]])('on %j find the bits of two devices in one thread, by kernels', async (names) => {
    const [local] = await launch({ ranks: 2, devices }, (context) => collectives(context, start))
    expect(local?.about).toContain('by kernels over')
    const found = await run<Found>('collectives', { devices: names, start })
    expect(found.about).toContain('by kernels over')
    expect({ ...found, about: '' }).toEqual({ ...local, about: '', crossings: 0 })
  })

  it('on devices that do not reach each other find the same bits, by kernels over pinned memory', async () => {
    const [local] = await launch({ ranks: 2, devices }, (context) => collectives(context, start))
    control.plant('peers 0')
    const found = await run<Found>('collectives', { devices: ['cuda:0', 'cuda:1'], start })
    expect(found.about).toContain('by kernels over pinned memory')
    expect({ ...found, about: '' }).toEqual({ ...local, about: '', crossings: 0 })
    control.plant('delay 1 600000000')
    expect(await run('orphan', { devices: ['cuda:0', 'cuda:1'], start })).toEqual({ code: 'ERR_RANK_FAILED', rank: 1 })
  })

  it('a process that dies while the other one waits for its kernel is named', async () => {
    control.plant('delay 1 600000000')
    expect(await run('orphan', { devices: ['cuda:0', 'cuda:1'], start })).toEqual({ code: 'ERR_RANK_FAILED', rank: 1 })
  })
})
