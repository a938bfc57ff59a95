// One rank of the host benchmark: all-reduce of float32 arrays of some sizes, private or in the group's memory; rank 0 prints microseconds.
//   node host-rank.mjs PLACEMENT RANKS private|shared BYTES ...
import { launch } from '../dist/index.js'
import { median } from './harness.mjs'

const [placement, ranks, kind, ...sizes] = process.argv.slice(2)

const [found] = await launch({ ranks: Number(ranks), placement }, async ({ rank, size, host }) => {
  const times = {}
  for (const bytes of sizes.map(Number)) {
    const memory = kind === 'shared' ? await host.allocate(bytes) : new Uint8Array(bytes)
    const x = new Float32Array(memory.buffer, memory.byteOffset, bytes / 4).fill(rank + 1)
    const inPlace = { inPlace: true }
    await host.allReduce(x, 'sum', inPlace)
    if (x.some((value) => value !== (size * (size + 1)) / 2)) throw new Error(`wrong sum of ${bytes} bytes`)
    x.fill(0)
    const start = performance.now()
    for (let i = 0; i < 50; i++) await host.allReduce(x, 'sum', inPlace)
    const once = await host.broadcast((performance.now() - start) / 50)
    const batch = Math.floor(0.05 / once) + 1
    const batches = Math.min(2000, Math.floor(250 / (once * batch)) + 5)
    await host.barrier()
    const took = []
    for (let b = 0; b < batches; b++) {
      const began = performance.now()
      for (let i = 0; i < batch; i++) await host.allReduce(x, 'sum', inPlace)
      took.push((performance.now() - began) / batch)
    }
    times[bytes] = median(took) * 1000
  }
  return times
})
if (process.env.RANK === undefined || process.env.RANK === '0') console.log(JSON.stringify(found))
