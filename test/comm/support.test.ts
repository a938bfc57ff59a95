// The support matrix: every operation tried with every dtype on every kind of group. docs/support.md shows it and must not be stale.
//   RANKMESH_UPDATE_DOCS=1 npx vitest run --project gpu test/comm/support     writes it anew
import { afterAll, it } from 'vitest'
import { DTYPES, type DType } from '../../runtime/core/dtype.ts'
import { RankmeshError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { expectDocument } from '../support/document.ts'

const [gpu, other, cpu] = [await testDevice(), await testDevice(), await openDevice('cpu')] as const
afterAll(() => {
  for (const device of [gpu, other, cpu]) device.dispose()
})

type Try = (context: RankContext, x: Tensor) => Promise<unknown>

const fused: Try = ({ comm, device }, x) => {
  const options = { dtype: x.dtype, device }
  const weight = Tensor.full([x.shape[1] as number], 1, options)
  return comm.allReduceResidualBiasRMSNorm({ x, residual: Tensor.zeros(x.shape, options), weight })
}

const OPERATIONS: Record<string, Try> = {
  'allReduce sum, prod, min, max': async ({ comm }, x) => {
    for (const op of ['sum', 'prod', 'min', 'max'] as const) await comm.allReduce(x, { op })
  },
  'allReduce avg': ({ comm }, x) => comm.allReduce(x, { op: 'avg' }),
  reduceScatter: ({ comm }, x) => comm.reduceScatter(x, { dim: 0 }),
  reduceScatterV: ({ comm }, x) => comm.reduceScatterV(x, { dim: 0, sizes: [1, 3] }),
  reduce: ({ comm }, x) => comm.reduce(x),
  allReduceResidualBiasRMSNorm: fused,
  allGather: ({ comm }, x) => comm.allGather(x),
  allGatherV: ({ comm }, x) => comm.allGatherV(x),
  gather: ({ comm }, x) => comm.gather(x),
  scatter: ({ comm, rank }, x) => comm.scatter(rank === 0 ? x : null),
  broadcast: ({ comm }, x) => comm.broadcast(x),
  allToAll: ({ comm }, x) => comm.allToAll(x),
  'send, recv': ({ comm, rank }, x) => (rank === 0 ? comm.send(x, { dst: 1 }) : comm.recv(x.shape, x.dtype, { src: 0 })),
}

async function supported(on: readonly Device[]): Promise<Map<string, string>> {
  const [result] = await launch({ ranks: 2, devices: on }, async (context) => {
    const cells = new Map<string, string>()
    for (const [name, attempt] of Object.entries(OPERATIONS)) {
      for (const dtype of DTYPES) {
        const x = Tensor.zeros([4, 8], { dtype, device: context.device })
        let cell = 'yes'
        try {
          await attempt(context, x)
        } catch (error) {
          if (!(error instanceof RankmeshError)) throw error
          cell = error.code
        }
        cells.set(`${name} ${dtype}`, cell)
        await context.host.barrier()
      }
    }
    return cells
  })
  return result as Map<string, string>
}

/** Dtypes that are alike for every operation share a column. */
function table(cells: ReadonlyMap<string, string>): string {
  const column = (dtype: DType): string =>
    Object.keys(OPERATIONS)
      .map((name) => cells.get(`${name} ${dtype}`))
      .join()
  const groups = new Map<string, DType[]>()
  for (const dtype of DTYPES) groups.set(column(dtype), [...(groups.get(column(dtype)) ?? []), dtype])
  const heads = [...groups.values()]
  const lines = [
    `| operation | ${heads.map((dtypes) => dtypes.join(', ')).join(' | ')} |`,
    `| --- |${heads.map(() => ' --- |').join('')}`,
    ...Object.keys(OPERATIONS).map((name) => {
      const row = heads.map(([dtype]) => {
        const cell = cells.get(`${name} ${dtype}`) as string
        return cell === 'yes' ? 'yes' : `\`${cell}\``
      })
      return `| ${name} | ${row.join(' | ')} |`
    }),
  ]
  return lines.join('\n')
}

it('docs/support.md is what the operations do', async () => {
  const kinds = {
    'one WebGPU device': [gpu],
    'several WebGPU devices': [gpu, other],
    CPU: [cpu],
    'WebGPU and CPU together': [gpu, cpu],
  }
  const sections: string[] = []
  for (const [kind, on] of Object.entries(kinds)) sections.push(`### Groups on ${kind}\n\n${table(await supported(on))}`)
  expectDocument('support.md', 'operations', sections.join('\n\n'))
})
