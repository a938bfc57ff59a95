// Collectives of CUDA ranks for ranks in any placement: `node cuda-program.mjs NAME JSON` runs them in processes or threads and writes what rank 0 found.
import { createHash } from 'node:crypto'
import { writeSync } from 'node:fs'
import { AllReduceFusionPattern as P } from '../../runtime/comm/fusion/patterns.ts'
import type { DType } from '../../runtime/core/dtype.ts'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { Random } from '../support/random.ts'

export interface Found {
  about: string
  /** Of all bits of all results. */
  digest: string
  /** Rounds in which tensors crossed the host. */
  crossings: number
}

const FLOATS: readonly DType[] = ['float32', 'bfloat16', 'float16']

/** Sums, fused norms with codes, and gathers, small and large; `start` seeds what all ranks draw. */
export async function collectives({ rank, size, comm, device }: RankContext, start: number): Promise<Found> {
  const random = new Random(start)
  const hash = createHash('sha256')
  for (const [rows, n] of [
    [1, 64],
    [7, 1000],
    [90, 4096], // behind packets
  ] as const) {
    for (const dtype of rows > 50 ? FLOATS.slice(1, 2) : FLOATS) {
      const partials = Array.from({ length: size }, () => random.floats(rows * n))
      using x = Tensor.from(partials[rank]!, { shape: [rows, n], dtype, device })
      using residualIn = Tensor.from(random.floats(rows * n), { shape: [rows, n], dtype, device })
      using rmsGamma = Tensor.from(random.floats(n), { dtype, device })
      using sum = await comm.allReduce(x)
      using all = await comm.allGather(x)
      using first = await comm.broadcast(x, { src: size - 1 })
      const fused = await comm.allReduceFusion({ input: x, residualIn, rmsGamma, pattern: P.kARResidualRMSNormOutDynamicFP8Quant })
      for (const tensor of [sum, all, first, ...Object.values(fused)]) if (tensor) hash.update(await tensor.bytes())
      for (const tensor of Object.values(fused)) tensor?.dispose()
    }
  }
  return { about: comm.describe(), digest: hash.digest('hex'), crossings: comm.stats().crossings }
}

/** Rank 1's process ends while rank 0's kernel waits for it. */
async function orphan({ rank, comm, device }: RankContext): Promise<{ code: string | undefined; rank: number | undefined } | null> {
  const result = await comm.allReduce(Tensor.full([8], 1, { device }), { timeoutMs: 600_000 })
  await comm.barrier()
  if (rank === 1) process.kill(process.pid, 'SIGKILL')
  try {
    await result.bytes()
    return null
  } catch (error) {
    const { code, rank } = error as RankmeshError
    writeSync(1, `${JSON.stringify({ code, rank })}\n`)
    throw error
  }
}

const [name, json] = process.argv.slice(2)
if (name === 'collectives' || name === 'orphan') {
  const given = JSON.parse(json as string) as { devices: string[]; start: number; placement?: 'process' | 'thread' | null }
  const { devices, start, placement = 'process' } = given
  // Null: as a launcher has started it.
  const options = { ranks: 2, ...(placement && { placement }), devices, timeoutMs: 60_000 }
  if (name === 'collectives') {
    await launch(options, async (context) => {
      const found = await collectives(context, start)
      if (context.rank === 0) writeSync(1, `${JSON.stringify(found)}\n`)
    })
  } else {
    await launch(options, orphan).catch(() => {})
  }
}
