// Times matrix products of the CPU device beside the memory bandwidth of the machine: GB/s of weights as they are stored for few tokens,
// GFLOP/s for many.
// node bench/cpu.mjs [rounds]; builds first: node scripts/build.mjs && npm run build:native
import { execFileSync } from 'node:child_process'
import { openDevice, Tensor } from '../dist/index.js'
import { built } from './built.mjs'
import { check, median, randomFloats, row } from './harness.mjs'

const rounds = Number(process.argv[2] ?? 9)
/** Weights are gone through in turn until they are more than any cache holds. */
const WORKING_SET = 384 * 2 ** 20

/** Bandwidth of memcpy, read and written bytes together, and of reading alone, of one thread and of two. */
function limits() {
  const program = built('cc', 'limits.c', ['-pthread'])
  return program && JSON.parse(execFileSync(program).toString())
}

const device = await openDevice('cpu')
console.log(device.description)
const limit = limits()
if (limit) {
  console.log(`memcpy: ${limit.oneThread} GB/s with one thread, ${limit.twoThreads} with two`)
  console.log(`reading: ${limit.read[0]} GB/s with one thread, ${limit.read[1]} with two\n`)
}

/** Elements and bytes of a block, and where its float16 scales are. */
const BLOCKS = {
  q8_0: [32, 34, [0]],
  q4_0: [32, 18, [0]],
  q4_1: [32, 20, [0, 2]],
  q4_k: [256, 144, [0, 2]],
  q5_k: [256, 176, [0, 2]],
  q6_k: [256, 210, [208]],
}
const BYTES = { float32: 4, float16: 2, bfloat16: 2 }

/** Random blocks, with scales from 1/64 to 1/32. */
function randomBlocks(count, [values, size, scales]) {
  const bytes = Uint8Array.from({ length: (count / values) * size }, () => Math.random() * 256)
  for (let at = 0; at < bytes.length; at += size) for (const scale of scales) bytes[at + scale + 1] = 0x24 + Math.random() * 4
  return bytes
}

function product(rank, outs, k, tokens, dtype) {
  const block = BLOCKS[dtype]
  const size = block ? block[1] / block[0] : BYTES[dtype]
  const count = Math.max(1, Math.ceil(WORKING_SET / (outs * k * size)))
  const bytes = block ? randomBlocks(outs * k, block) : null
  const values = block ? null : randomFloats(outs * k)
  const weights = Array.from({ length: count }, () =>
    block ? Tensor.fromBytes(bytes, [outs, k], dtype, rank) : Tensor.from(values, { shape: [outs, k], dtype, device: rank }),
  )
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
const QUANTISED = Object.keys(BLOCKS)
const CASES = [
  ['matvec', matmul, 1, 4096, 4096, ['bfloat16', 'float16', 'float32']],
  ['matvec', matmul, 1, 2048, 5632, ['bfloat16', 'float16', 'float32', ...QUANTISED]],
  ['matvec, tree', tree, 1, 2048, 5632, ['bfloat16', 'float32', 'q8_0', 'q4_k']],
  ['4 tokens', matmul, 4, 2048, 5632, ['bfloat16', 'q8_0', 'q4_k']],
  ['128 tokens', matmul, 128, 2048, 5632, ['bfloat16', 'float16', 'float32', 'q8_0', 'q4_k']],
  ['128 tokens, tree', tree, 128, 2048, 5632, ['bfloat16']],
]

const widths = [18, 12, 9, 9, 12, 9, 12, 8]
row(['', 'weights', 'dtype', '1 rank', '% of reading', '2 ranks', '% of reading', ''], widths)
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
    const share = (value, most) => (limit && tokens <= 16 ? `${((value / most) * 100).toFixed(0)} %` : '')
    const shares = [share(a, limit?.read[0]), share(b, limit?.read[1])]
    row([name, `${outs}x${k}`, dtype, a.toFixed(1), shares[0], b.toFixed(1), shares[1], unit], widths)
    for (const job of jobs) for (const tensor of [...job.weights, job.x, job.y]) tensor.dispose()
  }
}
device.dispose()
