// Memory that runs out in the middle of a collective over parts: ERR_OUT_OF_MEMORY on every rank, nothing left over, the group goes on.
import { afterAll, expect, it } from 'vitest'
import { OutOfMemoryError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'

const [a, b] = [await testDevice(), await testDevice()]
const live = (): number => a.gpu.pool.liveBuffers + b.gpu.pool.liveBuffers
afterAll(() => {
  a.dispose()
  b.dispose()
})

/** Lets the pools' next allocations pass until `left` are used up; the one after that fails, once. */
let left = Number.POSITIVE_INFINITY
for (const { gpu } of [a, b]) {
  const allocateSlices = gpu.pool.allocateSlices.bind(gpu.pool)
  gpu.pool.allocateSlices = (count, bytes) => {
    if (left-- > 0) return allocateSlices(count, bytes)
    left = Number.POSITIVE_INFINITY
    throw new OutOfMemoryError('no memory for this test')
  }
}

/** x and residual are [8, 5] float32, residual on memory of its own. */
const COLLECTIVES: Record<string, (context: RankContext, x: Tensor, residual: Tensor, weight: Tensor) => Promise<unknown>> = {
  allGatherV: ({ comm, rank }, x) => {
    using own = x.narrow(0, 0, rank)
    return comm.allGatherV(own)
  },
  reduceScatterV: ({ comm }, x) => comm.reduceScatterV(x, { dim: 0, sizes: [5, 0, 1, 2] }),
  reduce: ({ comm }, x) => comm.reduce(x, { dst: 3 }),
  scatter: ({ comm }, x) => comm.scatter(x, { src: 1 }),
  allToAll: ({ comm }, x) => comm.allToAll(x),
  'allToAll, uneven': ({ comm }, x) => comm.allToAll(x, { splits: [5, 0, 1, 2] }),
  allGather2D: async ({ comm }, x) => void (await comm.allGather2D(x, { pitch: 20, stride: 5, width: 3, height: 2 })),
  allReduceResidualBiasRMSNormEx: async ({ comm }, hidden, residual, weight) => {
    const groups = { group0: null, group1: null, localTokenNums: [8] }
    await comm.allReduceResidualBiasRMSNormEx({ hidden, residual, weight, ...groups })
  },
}

for (const used of [[a], [a, b], [a, b, b, a]]) {
  for (const [name, collective] of Object.entries(COLLECTIVES)) {
    it(`${name} over [${used.map((device) => [a, b].indexOf(device))}], at each of its allocations`, async () => {
      const before = live()
      const failures = await launch({ ranks: 4, devices: used }, async (context) => {
        const { comm, device } = context
        using x = Tensor.full([8, 5], 1, { device })
        using residual = Tensor.full([8, 5], 0, { device })
        using weight = Tensor.full([5], 1, { device })
        for (let failed = 0; ; failed++) {
          await comm.barrier()
          const held = live()
          await comm.barrier()
          left = failed
          try {
            const result = await collective(context, x, residual, weight)
            if (result instanceof Tensor) result.dispose()
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
