// Times matrix products of the CPU device beside the copy bandwidth of the machine: GB/s of weights for one token, GFLOP/s for many.
// node bench/cpu.mjs [rounds]; builds first: node scripts/build.mjs && npm run build:native
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openDevice, Tensor } from '../dist/index.js'
import { check, median, randomFloats, row } from './harness.mjs'

const rounds = Number(process.argv[2] ?? 9)
/** Weights are gone through in turn until they are more than any cache holds. */
const WORKING_SET = 384 * 2 ** 20

/** Bandwidth of memcpy, read and written bytes together, of one thread and of two. */
function limits() {
  const folder = mkdtempSync(join(tmpdir(), 'rankmesh-bench-'))
  try {
    const program = join(folder, 'limits')
    execFileSync('cc', ['-O2', '-pthread', join(import.meta.dirname, 'peers/limits.c'), '-o', program])
    return JSON.parse(execFileSync(program).toString())
  } catch {
    return null
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const device = await openDevice('cpu')
console.log(device.description)
const copy = limits()
if (copy) console.log(`memcpy: ${copy.oneThread} GB/s with one thread, ${copy.twoThreads} with two\n`)

function product(rank, outs, k, tokens, dtype) {
  const size = dtype === 'float32' ? 4 : 2
  const count = Math.max(1, Math.ceil(WORKING_SET / (outs * k * size)))
  const values = randomFloats(outs * k)
  const weights = Array.from({ length: count }, () => Tensor.from(values, { shape: [outs, k], dtype, device: rank }))
  const inputs = randomFloats(tokens * k)
  const x = Tensor.from(inputs, { shape: [tokens, k], device: rank })
  const y = Tensor.empty([tokens, outs], { device: rank })
  return { inputs, weights, x, y, bytes: count * outs * k * size, flops: 2 * count * outs * k * tokens }
}

/** Milliseconds of one pass over all weights, on all ranks at once. */
async function time(ranks, jobs, run) {
  const samples = []
  for (let round = 0; round <= rounds; round++) {
    const start = performance.now()
    await Promise.all(
      ranks.map((rank, r) => {
        for (const w of jobs[r].weights) run(rank, jobs[r].x, w, jobs[r].y)
        return rank.sync()
      }),
    )
    if (round > 0) samples.push(performance.now() - start)
  }
  return median(samples)
}

const matmul = (rank, x, w, out) => rank.matmul(x, w, { out })
const tree = (rank, x, w, out) => rank.matmulTree(x, w, { block: 128, whole: true, out })
const CASES = [
  ['matvec', matmul, 1, 4096, 4096, ['bfloat16', 'float16', 'float32']],
  ['matvec', matmul, 1, 2048, 5632, ['bfloat16', 'float16', 'float32']],
  ['matvec, tree', tree, 1, 2048, 5632, ['bfloat16', 'float32']],
  ['4 tokens', matmul, 4, 2048, 5632, ['bfloat16']],
  ['128 tokens', matmul, 128, 2048, 5632, ['bfloat16', 'float32']],
  ['128 tokens, tree', tree, 128, 2048, 5632, ['bfloat16']],
]

const widths = [18, 12, 9, 9, 12, 9, 8]
row(['', 'weights', 'dtype', '1 rank', '% of memcpy', '2 ranks', ''], widths)
for (const [name, run, tokens, outs, k, dtypes] of CASES) {
  for (const dtype of dtypes) {
    const ranks = [device, device.view()]
    const jobs = ranks.map((rank) => product(rank, outs, k, tokens, dtype))
    const { inputs, weights, x, y } = jobs[0]
    const rounded = await weights[0].data()
    run(device, x, weights[0], y)
    const expected = Array.from({ length: 16 }, (_, o) =>
      rounded.subarray(o * k, (o + 1) * k).reduce((sum, w, i) => sum + w * inputs[i], 0),
    )
    check(name, (await y.data()).subarray(0, 16), expected, 1e-5 * k)
    const one = await time(ranks.slice(0, 1), jobs.slice(0, 1), run)
    const two = await time(ranks, jobs, run)
    const [work, unit] = tokens > 16 ? [jobs[0].flops, 'GFLOP/s'] : [jobs[0].bytes, 'GB/s']
    const [a, b] = [work / one / 1e6, (2 * work) / two / 1e6]
    const share = copy && tokens <= 16 ? `${((a / copy.oneThread) * 100).toFixed(0)} %` : ''
    row([name, `${outs}x${k}`, dtype, a.toFixed(1), share, b.toFixed(1), unit], widths)
    for (const job of jobs) for (const tensor of [...job.weights, job.x, job.y]) tensor.dispose()
  }
}
device.dispose()
