// Memory that runs out in the middle of a collective: ERR_OUT_OF_MEMORY on every rank, nothing left over, and the group goes on.
import { afterAll, expect, it } from 'vitest'
import { OutOfMemoryError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'

const devices = [await testDevice(), await testDevice()]
const [a, b] = devices as [WebGpuDevice, WebGpuDevice]
const live = (): number => a.gpu.pool.liveBuffers + b.gpu.pool.liveBuffers
afterAll(() => {
  for (const device of devices) device.dispose()
})

/** Lets the pools' next allocations pass until `left` are used up; the one after that fails, once. */
let left = Number.POSITIVE_INFINITY
for (const { gpu } of devices) {
  const allocateSlices = gpu.pool.allocateSlices.bind(gpu.pool)
  gpu.pool.allocateSlices = (count, bytes) => {
    if (left-- > 0) return allocateSlices(count, bytes)
    left = Number.POSITIVE_INFINITY
    throw new OutOfMemoryError('no memory for this test')
  }
}

type Operands = Record<'x' | 'residual' | 'weight', Tensor>

const COLLECTIVES: Record<string, (context: RankContext, operands: Operands) => Promise<Tensor | null>> = {
  allReduce: ({ comm }, { x }) => comm.allReduce(x),
  allGather: ({ comm }, { x }) => comm.allGather(x),
  gather: ({ comm }, { x }) => comm.gather(x, { dst: 3 }),
  reduceScatter: ({ comm }, { x }) => comm.reduceScatter(x, { dim: 1 }),
  broadcast: ({ comm }, { x }) => comm.broadcast(x, { src: 2 }),
  allocate: ({ comm }) => comm.allocate([3]),
  'allocate, shared': ({ comm }) => comm.allocate([3], { shared: true }),
  allReduceResidualBiasRMSNorm: ({ comm }, operands) => comm.allReduceResidualBiasRMSNorm(operands),
}

for (const used of [[a], [a, b], [a, b, b, a]]) {
  for (const [name, collective] of Object.entries(COLLECTIVES)) {
    it(`${name} over [${used.map((device) => devices.indexOf(device))}], at each of its allocations`, async () => {
      const before = live()
      const failures = await launch({ ranks: 4, devices: used }, async (context) => {
        const { comm, device, rank } = context
        // At an odd place in memory: that takes copies, and so the most memory on the way.
        using whole = Tensor.full([3, 13], rank, { dtype: 'float16', device })
        using odd = whole.narrow(0, 1, 1)
        using flat = odd.reshape([13])
        using cut = flat.narrow(0, 1, 12)
        using x = cut.reshape([1, 12])
        using residual = Tensor.full([1, 12], 0, { dtype: 'bfloat16', device })
        using weight = Tensor.full([12], 1, { dtype: 'bfloat16', device })
        for (let failed = 0; ; failed++) {
          await comm.barrier()
          const held = live()
          await comm.barrier()
          left = failed
          try {
            using y = await collective(context, { x, residual, weight })
            void y
            return failed
          } catch (error) {
            expect(error).toMatchObject({ code: 'ERR_OUT_OF_MEMORY' })
            await comm.barrier()
            expect(live(), `after failure ${failed}`).toBe(held)
          } finally {
            left = Number.POSITIVE_INFINITY
          }
        }
      })
      expect(failures[0], 'allocations that were made to fail').toBeGreaterThan(0)
      expect(new Set(failures).size).toBe(1)
      expect(live()).toBe(before)
    })
  }
}
