// Memory that runs out in the middle of a collective over parts: ERR_OUT_OF_MEMORY on every rank, nothing left over, the group goes on.
import { afterAll, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { ScarceMemory } from '../support/scarce-memory.ts'

const [a, b] = [await testDevice(), await testDevice()]
afterAll(() => {
  a.dispose()
  b.dispose()
})

const memory = new ScarceMemory([a, b])

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
    it(`${name} over [${used.map((device) => [a, b].indexOf(device))}], at each of its allocations`, () =>
      memory.failEach(used, async (context, attempt) => {
        const { device } = context
        using x = Tensor.full([8, 5], 1, { device })
        using residual = Tensor.full([8, 5], 0, { device })
        using weight = Tensor.full([5], 1, { device })
        return await attempt(() => collective(context, x, residual, weight))
      }))
  }
}
