// A program whose ranks are on this machine's CUDA devices: `node program.mjs PLACEMENT RANKS DEVICE`. The last line of standard output is JSON.
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch, type Placement } from '../../runtime/scheduler/launch.ts'

const [placement, ranks, device] = process.argv.slice(2) as [Placement | 'default', string, string]
const options = { device, timeoutMs: 60_000, ...(placement !== 'default' && { placement, ranks: Number(ranks) }) }
const results = await launch(options, async ({ rank, size, device, comm, host }) => {
  using x = Tensor.full([3, 5], rank + 1, { device })
  using y = await comm.allReduce(x)
  return {
    rank,
    size,
    name: device.name,
    sum: ((await y.data()) as Float32Array)[7],
    host: [...(await host.allReduce(new Float64Array([rank])))],
  }
})
console.log(JSON.stringify(results))
