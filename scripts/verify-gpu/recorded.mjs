// A recorded step, launched again and again, gives the bits of the step itself.
import { runRanks } from './groups.mjs'

export async function run(report, { seed, quick, devices }) {
  const sizes = quick ? { rows: 2, n: 32, launches: 10 } : { rows: 3, n: 1024, launches: 100 }
  const several = devices.length > 1 ? [devices.map(({ index }) => `cuda:${index}`)] : []
  for (const names of [['cuda:0'], ...several]) {
    for (const placement of ['local', 'thread', 'process']) {
      for (const ranks of names.length > 1 ? [names.length] : quick ? [2] : [2, 4]) {
        await report.check(`${sizes.launches} launches, ${ranks} ranks on ${names.join(', ')}, ${placement}`, async () => {
          const [{ about }] = await runRanks({ task: 'recorded', seed, placement, ranks, devices: names, ...sizes })
          return about
        })
      }
    }
  }
}
