// smoke
import { expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch } from '../../runtime/scheduler/launch.ts'

it('sums over ranks', async () => {
  const out = await launch({ ranks: 4, placement: 'local', device: 'webgpu' }, async ({ rank, device, comm }) => {
    const x = Tensor.full([8, 4096], rank + 1, { device })
    const y = await comm.allReduce(x)
    const g = await comm.allGather(x.narrow(0, 0, 1), { dim: 0 })
    const rs = await comm.reduceScatter(x, { dim: 1 })
    const b = await comm.broadcast(x, { src: 2 })
    const residual = Tensor.full([8, 4096], 1, { device })
    const n = await comm.allReduceResidualBiasRMSNorm({ x, residual, weight: Tensor.full([4096], 1, { device }) })
    return [(await y.data())[0], g.shape, (await g.data())[4096 * 3], rs.shape, (await rs.data())[7], (await b.data())[9], (await n.data())[77], (await residual.data())[5], comm.stats()]
  })
  console.log(out[3])
  expect(out[1]?.[0]).toBe(10)
})
it('two devices', async () => {
  const { openDevice } = await import('../../runtime/device/open.ts')
  const [a, b] = [await openDevice('webgpu'), await openDevice('webgpu')]
  const out = await launch({ ranks: 4, devices: [a, b] }, async ({ rank, device, comm }) => {
    const x = Tensor.full([8, 4096], rank + 1, { device })
    const y = await comm.allReduce(x)
    const rs = await comm.reduceScatter(x, { dim: 1 })
    const bb = await comm.broadcast(x, { src: 2 })
    return [(await y.data())[0], (await rs.data())[7], (await bb.data())[9], comm.stats()]
  })
  console.log(out[3])
  expect(out[1]?.[0]).toBe(10)
})
