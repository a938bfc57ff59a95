// Memory that runs out in the middle of a collective: ERR_OUT_OF_MEMORY on every rank, nothing left over, and the group goes on.
import { afterAll, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import type { RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { ScarceMemory } from '../support/scarce-memory.ts'

const devices = [await testDevice(), await testDevice()]
const [a, b] = devices as [WebGpuDevice, WebGpuDevice]
afterAll(() => {
  for (const device of devices) device.dispose()
})

const memory = new ScarceMemory(devices)

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
    it(`${name} over [${used.map((device) => devices.indexOf(device))}], at each of its allocations`, () =>
      memory.failEach(used, async (context, attempt) => {
        const { device, rank } = context
        // At an odd place in memory: that takes copies, and so the most memory on the way.
        using whole = Tensor.full([3, 13], rank, { dtype: 'float16', device })
        using odd = whole.narrow(0, 1, 1)
        using flat = odd.reshape([13])
        using cut = flat.narrow(0, 1, 12)
        using x = cut.reshape([1, 12])
        using residual = Tensor.full([1, 12], 0, { dtype: 'bfloat16', device })
        using weight = Tensor.full([12], 1, { dtype: 'bfloat16', device })
        return await attempt(() => collective(context, { x, residual, weight }))
      }))
  }
}
