// Collectives over NCCL: a rank on each GPU, and two ranks on one where NCCL lets them; recorded steps.
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
  const env = { NCCL_MULTI_RANK_GPU_ENABLE: '1' }
  await report.check('2 ranks on one GPU, process', async () => {
    needNccl({ features, addon }, true)
    const shared = { ...plan, shapes: shapes.map(([rows, n]) => [rows, 2 * n]), placement: 'process', ranks: 2, devices: ['cuda:0'] }
    return alike(await runRanks(shared, { env }))
  })
  // Of two ranks, whose sums have the same bits in whatever order NCCL adds.
  const step = {
    task: 'recorded',
    seed,
    backend: 'nccl',
    expect: 'NCCL',
    ranks: 2,
    ...(quick ? { rows: 2, n: 32, launches: 10 } : { rows: 3, n: 1024, launches: 100 }),
  }
  for (const placement of all > 1 ? ['local', 'thread', 'process'] : []) {
    await report.check(`${step.launches} launches of a recorded step, 2 GPUs, ${placement}`, async () => {
      needNccl({ features, addon }, false)
      return (await runRanks({ ...step, placement, devices: names.slice(0, 2) }))[0].about
    })
  }
  await report.check(`${step.launches} launches of a recorded step, 2 ranks on one GPU, process`, async () => {
    needNccl({ features, addon }, true)
    return (await runRanks({ ...step, placement: 'process', devices: names.slice(0, 1) }, { env }))[0].about
  })
}
