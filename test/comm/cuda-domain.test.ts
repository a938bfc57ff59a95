// CUDA ranks in processes that see different devices, as those of different machines do: NVLink joins them where the devices are of one domain.
import '../support/cuda-multicast.ts'
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { afterEach, describe, expect, it } from 'vitest'
import { addonReport } from '../../runtime/core/addon-node.ts'
import { bundle } from '../support/bundle.ts'
import { control, reason } from '../support/cuda.ts'
import { freePort } from '../support/free-port.ts'
import { seed } from '../support/random.ts'
import type { Found } from './cuda-program.ts'

const run = promisify(execFile)
const program = reason === '' ? await bundle('test/comm/cuda-program.ts') : ''
const start = seed()
const BY_PINNED = /by kernels over pinned memory/

/** What rank 0 finds; rank r sees devices of its own, in `domains[r]`: cluster, clique and state, 3 where the device has joined. */
async function found(domains: readonly (string | null)[]): Promise<Found> {
  const port = await freePort()
  const plan = JSON.stringify({ devices: ['cuda:0', 'cuda:0'], start, placement: null })
  const ranks = domains.map((domain, rank) => {
    const env = {
      ...process.env,
      RANKMESH_ADDON: addonReport().path ?? 'off',
      RANKMESH_TOKEN: 'a token for tests',
      RANKMESH_CUDA_DOUBLE: `${process.env.RANKMESH_CUDA_DOUBLE};uuid ${4 * rank}`,
      ...(domain !== null && { RANKMESH_NVML_DOUBLE: domain }),
      RANK: `${rank}`,
      WORLD_SIZE: `${domains.length}`,
      LOCAL_RANK: `${rank}`,
      LOCAL_WORLD_SIZE: `${domains.length}`,
      MASTER_ADDR: '127.0.0.1',
      MASTER_PORT: `${port}`,
    }
    return run(process.execPath, [program, 'collectives', plan], { env, timeout: 100_000 })
  })
  const [first] = await Promise.all(ranks)
  return JSON.parse(first?.stdout.split('\n')[0] as string) as Found
}

afterEach(() => {
  if (reason === '') expect(control.counts()).toMatchObject({ virtual: 0, imports: 0, allocations: 0, reports: 0 })
})

describe.skipIf(reason !== '')(`devices that no other process sees${reason}`, () => {
  const NVLINK = "by kernels over the devices' memory"

  it(`are joined by NVLink in one domain, with a multicast and without, and else by pinned memory, with the same bits (seed ${start})`, async () => {
    control.plant('multicast 1;fabric 1')
    const joined = await found(['7 1 3', '7 1 3'])
    expect(joined.about).toContain(`${NVLINK}, stores to all at once by multicast`)
    const crossings = joined.crossings
    const apart = [
      await found(['7 1 3', '7 2 3']),
      await found(['7 1 3', '8 1 3']),
      await found([null, '7 1 3']),
      await found(['7 1 2', '7 1 2']),
    ]
    for (const { about } of apart) expect(about).toContain('by kernels over pinned memory')
    control.plant('multicast 0;fabric 1')
    const plain = await found(['7 1 3', '7 1 3'])
    control.plant('multicast 1;fabric 0')
    const untold = await found(['7 1 3', '7 1 3'])
    expect(untold.about).toContain('by kernels over pinned memory')
    expect(plain.about).toContain(NVLINK)
    expect(plain.about).not.toContain('multicast')
    for (const one of [...apart, plain, untold]) expect(one).toEqual({ about: expect.anything(), digest: joined.digest, crossings })
  })

  const fails = (calls: readonly number[]): string => calls.map((nth) => `fail cuMemImportFromShareableHandle ${nth} 101`).join(';')
  it.each([
    ['the driver makes no handles of a fabric, and hands over files', 'fabric 2', /devices' memory, stores to all at once by multicast/],
    ['a handle of a fabric is not taken, its file is', `fabric 1;${fails([1])}`, /devices' memory, stores to all at once by multicast/],
    [
      'neither is, with a multicast',
      `fabric 1;${fails([1, 2])}`,
      /devices' memory, without multicast \(rank . cannot use .*INVALID_DEVICE/,
    ],
    ['neither is', `fabric 1;${fails([1, 2, 3, 4])}`, BY_PINNED],
  ])('%s', async (_, settings, about) => {
    control.plant(`multicast 1;${settings}`)
    const refused = await found(['7 1 3', '7 1 3'])
    control.plant('fabric 0;multicast 0')
    const pinned = await found([null, null])
    expect(refused.about).toMatch(about)
    expect(refused.digest).toBe(pinned.digest)
  })
})
