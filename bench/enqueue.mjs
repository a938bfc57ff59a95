// What a collective costs JavaScript: microseconds of a rank's call until it is with the device, run one by one and from a recording.
import { launch, openDevice, Tensor } from 'rankmesh'
import { median, row } from './harness.mjs'

export const about = 'what a collective costs JavaScript, a rank and call (5 us at most); needs the addon'

const RANKS = [2, 4, 8]
const CALLS = 256
const ROUNDS = 41
const N = 64

/** Microseconds of a rank's call, by name; all ranks are of this thread, so that what all take is what one takes, times their number. */
async function measure(ranks, device) {
  const results = await launch({ ranks, devices: [device] }, async ({ comm, device, rank, size }) => {
    const options = { dtype: 'bfloat16', device }
    const [x, residual, out] = [Tensor.full([1, N], rank + 1, options), Tensor.zeros([1, N], options), Tensor.zeros([1, N], options)]
    const weight = Tensor.full([N], 1, options)
    const fused = () => comm.allReduceResidualBiasRMSNorm({ x, residual, weight, out })
    const recording = await comm.record(async () => {
      for (let i = 0; i < CALLS; i++) await fused()
    })
    const contenders = {
      allReduce: async () => {
        for (let i = 0; i < CALLS; i++) await comm.allReduce(x, { out })
      },
      'fused norm': async () => {
        for (let i = 0; i < CALLS; i++) await fused()
      },
      recorded: () => recording.launch(),
    }
    const times = Object.fromEntries(Object.keys(contenders).map((name) => [name, []]))
    for (let round = 0; round < ROUNDS; round++) {
      for (const [name, run] of Object.entries(contenders)) {
        await comm.barrier()
        const start = performance.now()
        await run()
        times[name].push(((performance.now() - start) * 1000) / CALLS / size)
        await device.sync()
      }
    }
    recording.dispose()
    return Object.fromEntries(Object.entries(times).map(([name, all]) => [name, median(all.slice(ROUNDS >> 2))]))
  })
  return results[0]
}

export async function run() {
  const device = await openDevice('cpu')
  console.log(`${device.description}\n`)
  const widths = [6, 12, 12, 24]
  row(['ranks', 'allReduce', 'fused norm', 'fused norm, recorded'], widths)
  for (const ranks of RANKS) {
    const { allReduce, recorded, 'fused norm': fused } = await measure(ranks, device)
    row([ranks, ...[allReduce, fused].map((us) => `${us.toFixed(1)} us`), `${recorded.toFixed(2)} us`], widths)
  }
  device.dispose()
}
