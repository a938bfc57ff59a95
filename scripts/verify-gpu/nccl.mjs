// Collectives over NCCL: a rank on each GPU, and two ranks on one where NCCL lets them.
import { FLOATS, Skip } from './checks.mjs'
import { alike, runRanks } from './groups.mjs'

/** The release that lets ranks share a device. */
const SHARES = 23003

export async function run(report, { seed, quick, devices, features, addon }) {
  const absent = features.nccl.available ? null : features.nccl.detail
  const names = devices.map(({ index }) => `cuda:${index}`)
  const all = names.length
  const shapes = [
    [1, 16 * all],
    [5, quick ? 16 * all : 1024 * all],
  ]
  const plan = { task: 'collectives', seed, shapes, dtypes: quick ? ['float32'] : FLOATS, backend: 'nccl', expect: 'NCCL' }
  for (const placement of ['local', 'thread', 'process']) {
    await report.check(`${all} rank${all > 1 ? 's' : ''}, one a GPU, ${placement}`, async () => {
      if (absent) throw new Skip(absent)
      return alike(await runRanks({ ...plan, placement, ranks: all, devices: names }))
    })
  }
  await report.check('2 ranks on one GPU, process', async () => {
    if (absent) throw new Skip(absent)
    const version = addon.nccl.version()
    if (version < SHARES) throw new Skip(`NCCL ${version} wants a GPU for each rank; ${SHARES} lets them share`)
    const env = { NCCL_MULTI_RANK_GPU_ENABLE: '1' }
    const shared = { ...plan, shapes: shapes.map(([rows, n]) => [rows, 2 * n]), placement: 'process', ranks: 2, devices: ['cuda:0'] }
    return alike(await runRanks(shared, { env }))
  })
}
