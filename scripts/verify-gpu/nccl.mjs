// Collectives over NCCL: a rank on each GPU, and two ranks on one where NCCL lets them.
import { FLOATS } from './checks.mjs'
import { alike, needNccl, runRanks } from './groups.mjs'

export async function run(report, { seed, quick, devices, features, addon }) {
  const names = devices.map(({ index }) => `cuda:${index}`)
  const all = names.length
  const shapes = [
    [1, 16 * all],
    [5, quick ? 16 * all : 1024 * all],
  ]
  const plan = { task: 'collectives', seed, shapes, dtypes: quick ? ['float32'] : FLOATS, backend: 'nccl', expect: 'NCCL' }
  for (const placement of ['local', 'thread', 'process']) {
    await report.check(`${all} rank${all > 1 ? 's' : ''}, one a GPU, ${placement}`, async () => {
      needNccl({ features, addon }, false)
      return alike(await runRanks({ ...plan, placement, ranks: all, devices: names }))
    })
  }
  await report.check('2 ranks on one GPU, process', async () => {
    needNccl({ features, addon }, true)
    const env = { NCCL_MULTI_RANK_GPU_ENABLE: '1' }
    const shared = { ...plan, shapes: shapes.map(([rows, n]) => [rows, 2 * n]), placement: 'process', ranks: 2, devices: ['cuda:0'] }
    return alike(await runRanks(shared, { env }))
  })
}
