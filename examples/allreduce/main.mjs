// An all-reduce over four ranks: every rank brings its own tensor, every rank gets the sum.
import { launch, Tensor } from 'rankmesh'

await launch({ ranks: 4, placement: 'local', device: 'webgpu' }, async ({ rank, device, comm }) => {
  const x = Tensor.full([8, 4096], rank + 1, { device })
  const y = await comm.allReduce(x) // sum over ranks: every element is 1+2+3+4
  console.log(rank, (await y.data())[0])
})
