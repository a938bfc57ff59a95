// A mixed group of two CUDA ranks and one on the CPU in processes of their own: `node staged-cuda-program.mjs JSON` writes what rank 0 found.
import { createHash } from 'node:crypto'
import { writeSync } from 'node:fs'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { Random } from '../support/random.ts'

export interface Found {
  about: string
  /** Of all bits of all results. */
  digest: string
  /** Bytes this rank sent to the others for a sum. */
  sent: number
}

/** Sums and fused norms; `start` seeds what all ranks draw. */
export async function mixed({ rank, size, comm, device }: RankContext, start: number): Promise<Found> {
  const random = new Random(start)
  const hash = createHash('sha256')
  const [rows, n] = [10, 2048]
  let sent = 0
  for (const dtype of ['float32', 'bfloat16'] as const) {
    const partials = Array.from({ length: size }, () => random.floats(rows * n))
    using x = Tensor.from(partials[rank]!, { shape: [rows, n], dtype, device })
    using residual = Tensor.from(random.floats(rows * n), { shape: [rows, n], dtype, device })
    using weight = Tensor.from(random.floats(n), { dtype, device })
    const before = comm.stats().hostBytes
    using sum = await comm.allReduce(x)
    sent = comm.stats().hostBytes - before
    using normed = await comm.allReduceResidualBiasRMSNorm({ x, residual, weight })
    for (const tensor of [sum, normed, residual]) hash.update(await tensor.bytes())
  }
  return { about: comm.describe(), digest: hash.digest('hex'), sent }
}

const [json] = process.argv.slice(2)
if (json?.startsWith('{"devices"')) {
  const { devices, start } = JSON.parse(json) as { devices: string[]; start: number }
  await launch({ ranks: devices.length, placement: 'process', devices, timeoutMs: 60_000 }, async (context) => {
    const found = await mixed(context, start)
    const all = await context.host.allGather(found)
    if (context.rank === 0) writeSync(1, `${JSON.stringify(all)}\n`)
  })
}
