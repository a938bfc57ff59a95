// Collectives of CUDA ranks over an NCCL of 2021, which splits no communicators, knows no gather, and whose calls block.
import { afterAll, describe, expect, it } from 'vitest'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { buildNccl } from '../native/nccl-double/build.ts'
import { errorOf } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'
import { allCases, type Group, groupOf, shareOf } from './conformance.ts'
import { inThread } from './nccl-ranks.ts'

const RANKS = 3
process.env.RANKMESH_CUDA_DOUBLE = `devices ${RANKS}`
process.env.RANKMESH_NCCL_DOUBLE_VERSION = '21003'
const { reason } = await import('../support/cuda.ts')
if (reason === '') process.env.RANKMESH_NCCL_PATH = await buildNccl()
const { openDevice } = await import('../../runtime/device/open.ts')
const devices = (await Promise.all(Array.from({ length: reason === '' ? RANKS : 0 }, (_, i) => openDevice(`cuda:${i}`)))) as CudaDevice[]
afterAll(() => {
  for (const device of devices) device.dispose()
})

const start = seed()
describe.skipIf(reason !== '')(`NCCL 2.10.3 (seed ${start})${reason}`, () => {
  it('is the one', async () => {
    for (const text of await inThread(devices, async ({ nccl }) => nccl.describe())) expect(text).toMatch(/: NCCL 2\.10\.3$/)
  })
  it('has no calls that graphs hold: steps are not recorded', async () => {
    const found = await inThread(devices, async ({ nccl }) => [nccl.records, (await errorOf(nccl.record(async () => {}))).code])
    expect(found).toEqual(Array(RANKS).fill([false, 'ERR_ARGUMENT']))
  })
  const share: Group['share'] = (factors) => shareOf(start, 0)(factors).filter((row) => !('xType' in row) || row.xType === 'float32')
  const group = groupOf({ place: [0, 1, 2], random: new Random(start), share }, (main) => inThread(devices, main))
  allCases(group, true)
})
