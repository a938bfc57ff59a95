// tune of CUDA ranks: both ways are screened, then timed; what it finds is heeded, alike on all ranks, and kept.
import { afterAll, describe, expect, it } from 'vitest'
import type { CudaGroup } from '../../runtime/comm/cuda/group.ts'
import type { Member } from '../../runtime/comm/cuda/member.ts'
import type { PeerRoom } from '../../runtime/comm/cuda/plan.ts'
import { WAY, wayOf } from '../../runtime/comm/cuda/plan.ts'
import { tune } from '../../runtime/comm/cuda/tune.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { cudaDevices, reason } from '../support/cuda.ts'
import { sleep } from '../support/outcomes.ts'
import { type CudaRank, overPeers } from './cuda-ranks.ts'

const [a, b] = (await Promise.all(cudaDevices().map(({ open }) => open()))) as [CudaDevice, CudaDevice]
afterAll(() => {
  for (const device of [a, b]) device?.dispose()
})

/** A room that no other group has: its sizes are 8, 16 and 32 KiB and a bit. */
const room = (extra: number): PeerRoom => ({ dataBytes: (32 << 10) + 128 * extra, packetBytes: 4 << 10 })
const planOf = ({ peers }: CudaRank): CudaGroup['plan'] => (peers.member.group as CudaGroup).plan

describe.skipIf(reason !== '')(`CUDA ranks${reason}`, () => {
  it('measures once for groups of the same make, and all ranks take the same', async () => {
    const run = () => overPeers([a, b], async (rank) => ({ report: await rank.comm.tune(), plan: planOf(rank) }), { room: room(1) })
    const [first, second] = await run()
    expect(first!.report).toEqual(second!.report)
    expect(first!.report).toMatchObject({ bitsEqual: true, topology: expect.stringContaining("devices' memory") })
    expect(first!.report.smallMilliseconds).toBeGreaterThan(0)
    for (const { plan, report } of [first!, second!]) expect(plan.bounds.oneShot).toBe(report.stepBytes)
    expect((await run())[0]!.report).toEqual(first!.report)
  })

  it.each([
    ['one-shot', (8 << 10) + 128],
    ['two-shot', Number.MAX_SAFE_INTEGER],
  ] as const)('where %s is slow at 16 KiB and more, calls of up to %i bytes go one-shot', async (slow, bound) => {
    await overPeers(
      [a, b],
      async (rank) => {
        const late: CudaRank['peers']['allReduce'] = async (x, options) => {
          const result = await rank.peers.allReduce(x, options)
          if (options?.algorithm === (x.byteLength < 16 << 10 ? 'two-shot' : slow)) await sleep(50)
          return result
        }
        const { stepBytes } = await tune(rank.peers.member as unknown as Member, { allReduce: late })
        expect(stepBytes).toBe(bound)
        const plan = planOf(rank)
        expect(wayOf(plan, 32 << 10, undefined)).toBe(slow === 'one-shot' ? WAY.twoShot : WAY.oneShot)
        expect(wayOf(plan, 8 << 10, undefined)).toBe(WAY.oneShot)
        using x = Tensor.full([8 << 10], 2, { device: rank.device })
        using sum = await rank.comm.allReduce(x)
        expect(await sum.data()).toEqual(new Float32Array(8 << 10).fill(4))
      },
      { room: room(slow === 'one-shot' ? 4 : 8) },
    )
  })

  it('never goes two-shot where that gives other bits on any rank', async () => {
    await overPeers(
      [a, b],
      async (rank) => {
        const wrong: CudaRank['peers']['allReduce'] = async (x, options) => {
          const result = await rank.peers.allReduce(x, options)
          if (options?.algorithm === 'two-shot' && rank.rank === 1) rank.device.write(result.storage, 4, Uint8Array.of(0xff))
          return result
        }
        const { bitsEqual, stepBytes } = await tune(rank.peers.member as unknown as Member, { allReduce: wrong })
        expect({ bitsEqual, stepBytes }).toEqual({ bitsEqual: false, stepBytes: Number.MAX_SAFE_INTEGER })
      },
      { room: room(16) },
    )
  })
})
