// The fused all-reduce with residual and RMSNorm as figures need it: the shapes, the time of a call, the bytes that it moves.
import { Tensor } from 'rankmesh'
import { median } from './checks.mjs'

const ROUNDS = 7
/** Microseconds that other kernels take, on GPUs with a link between them, and what one token of one card should take. */
const BEAT = { '4 1 5120': 4.09, '8 1 5120': 4.81, '2 6 6144': 6.07, '2 1 8192': 4, '4 1 8192': 4, '8 1 8192': 4 }
const ROWS = [1, 4, 16, 64, 256, 1024]

const SHAPES = [
  ...[2, 4, 8].flatMap((ranks) => [4096, 8192].flatMap((n) => ROWS.map((rows) => ({ ranks, rows, n })))),
  { ranks: 4, rows: 1, n: 5120 },
  { ranks: 8, rows: 1, n: 5120 },
  { ranks: 2, rows: 6, n: 6144 },
].map((shape) => ({ ...shape, beat: BEAT[`${shape.ranks} ${shape.rows} ${shape.n}`] }))

/** Ranks, rows and row lengths, with what is to beat where there is such a figure; `quick`: two small ones. */
export function shapesFor(quick) {
  return quick ? SHAPES.slice(0, 2).map((shape) => ({ ...shape, n: 64 })) : SHAPES
}

/** Read and written in bfloat16: partials, the residual twice, the norm. */
export function normBytes(ranks, rows, n) {
  return (ranks + 3) * rows * n * 2
}

/** Microseconds of one call on this rank: run each time, from a recording (null where the group records none), and to give it to the device. */
export async function timeFusedNorm({ comm, device, rank }, { rows, n, times }) {
  const options = { dtype: 'bfloat16', device }
  const x = Tensor.full([rows, n], (rank + 1) / 1024, options)
  const [residual, out] = [Tensor.zeros([rows, n], options), Tensor.zeros([rows, n], options)]
  const weight = Tensor.full([n], 1, options)
  const call = () => comm.allReduceResidualBiasRMSNorm({ x, residual, weight, out })
  const enqueued = []
  const plain = await timed(device, 1, async () => {
    const start = performance.now()
    for (let i = 0; i < times; i++) await call()
    enqueued.push(((performance.now() - start) * 1000) / times)
  })
  let recorded = null
  if (comm.records) {
    const recording = await comm.record(async () => {
      for (let i = 0; i < times; i++) await call()
    })
    recorded = (await timed(device, 4, () => recording.launch())) / times
    recording.dispose()
  }
  for (const tensor of [x, residual, out, weight]) tensor.dispose()
  return { plain: plain / times, recorded, enqueue: median(enqueued.slice(1)) }
}

/** Microseconds of one of `times` runs that are waited for together; the median of rounds behind one that warms up. */
export async function timed(device, times, run) {
  const found = []
  for (let round = 0; round <= ROUNDS; round++) {
    const start = performance.now()
    for (let i = 0; i < times; i++) await run()
    await device.sync()
    if (round > 0) found.push(((performance.now() - start) * 1000) / times)
  }
  return median(found)
}

export function cell(value) {
  return String(value).padStart(14)
}

export function share(part, whole) {
  return `${((100 * part) / whole).toFixed(0)}%`
}
