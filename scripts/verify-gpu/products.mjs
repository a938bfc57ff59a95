// Matrix products against float64, by cuBLASLt where it loads and by own kernels: all types of activations and weights.
import { decode, dtypeSize, encode, openDevice, Tensor } from 'rankmesh'
import { FLOATS, Random, Skip, sameBits, within } from './checks.mjs'

const BLOCKS = { q8_0: 34, q4_0: 18 }
const BLOCK = 32
const EPSILON = 2 ** -24

/** Weights [outs, k] as bytes, and the values that they stand for. */
function weights(random, dtype, count) {
  if (!(dtype in BLOCKS)) {
    const values = random.floats(count, dtype)
    return { bytes: encode(dtype, values), values }
  }
  const bytes = Uint8Array.from({ length: count * dtypeSize(dtype) }, () => random.int(256))
  for (let at = 0; at < bytes.length; at += BLOCKS[dtype]) bytes.set(encode('float16', [random.normal() / 16]), at)
  return { bytes, values: decode(dtype, bytes) }
}

/** The product, and the sum of its terms' sizes, in float64. */
function product(x, w, { tokens, k, outs }) {
  const [sums, sizes] = [new Float64Array(tokens * outs), new Float64Array(tokens * outs)]
  for (let t = 0; t < tokens; t++) {
    for (let o = 0; o < outs; o++) {
      let [sum, size] = [0, 0]
      for (let i = 0, a = t * k, b = o * k; i < k; i++, a++, b++) {
        const term = x[a] * w[b]
        sum += term
        size += Math.abs(term)
      }
      sums[t * outs + o] = sum
      sizes[t * outs + o] = size
    }
  }
  return { sums, sizes }
}

/** What rounding activations adds to the error, as Activations promises. */
function rounding({ activations, x, w, sizes, tokens, k, outs }) {
  const errors = new Float64Array(tokens * outs)
  if (!activations) return errors
  for (let t = 0; t < tokens; t++) {
    for (let o = 0; o < outs; o++) {
      let error = 1.01 * 2 ** -8 * sizes[t * outs + o]
      for (let at = 0; activations === 'int8' && at < k; at += BLOCK) {
        let [most, sum] = [0, 0]
        for (let i = at; i < Math.min(at + BLOCK, k); i++) {
          most = Math.max(most, Math.abs(x[t * k + i]))
          sum += Math.abs(w[o * k + i])
        }
        error += (most / 254) * sum
      }
      errors[t * outs + o] = error
    }
  }
  return errors
}

export async function run(report, { seed, quick }) {
  const own = { RANKMESH_CUBLASLT_PATH: '/absent/libcublasLt.so' }
  const device = await openDevice('cuda:0')
  const hasCublas = device.description.includes('cuBLASLt')
  await report.check('cuBLASLt', () => {
    if (!hasCublas) throw new Skip('it did not load: own kernels do all products')
    return 'loaded'
  })
  if (hasCublas) await onDevice(report, device, { seed, quick, name: 'cuBLASLt and own kernels' })
  device.dispose()
  const given = process.env.RANKMESH_CUBLASLT_PATH
  Object.assign(process.env, own) // read when an engine is made
  const without = await openDevice('cuda:0')
  if (given === undefined) delete process.env.RANKMESH_CUBLASLT_PATH
  else process.env.RANKMESH_CUBLASLT_PATH = given
  await report.check('own kernels alone', () => {
    if (without.description.includes('cuBLASLt')) throw new Error(`cuBLASLt is still there: ${without.description}`)
    return without.description
  })
  await onDevice(report, without, { seed, quick, name: 'own kernels' })
  without.dispose()
}

async function onDevice(report, device, { seed, quick, name }) {
  const random = new Random(seed + 1)
  const shapes = quick ? [[33, 9], [64, 12]] : [[1031, 133], [1024, 512]] // biome-ignore format: pairs
  const counts = quick ? [1, 3, 9, 66] : [1, 3, 9, 130]
  for (const wType of [...FLOATS, ...Object.keys(BLOCKS)]) {
    for (const xType of wType in BLOCKS ? ['float32'] : FLOATS) {
      await report.check(`${name}: ${xType} by ${wType}`, async () => {
        let worst = 0
        for (const [k, outs] of shapes) {
          if (wType in BLOCKS && k % BLOCK !== 0) continue
          const w = weights(random, wType, outs * k)
          const wide = random.floats(Math.max(...counts) * k, xType)
          const bias = random.floats(outs)
          const on = {
            w: Tensor.fromBytes(w.bytes, [outs, k], wType, device),
            bias: Tensor.from(bias, { device }),
          }
          for (const tokens of counts) {
            const x = wide.subarray(0, tokens * k)
            const { sums, sizes } = product(x, w.values, { tokens, k, outs })
            const tx = Tensor.from(x, { shape: [tokens, k], dtype: xType, device })
            const results = []
            for (const activations of [undefined, 'bfloat16', 'int8']) {
              const rounded = rounding({ activations, x, w: w.values, sizes, tokens, k, outs })
              const y = device.matmul(tx, on.w, { bias: on.bias, activations })
              const expected = sums.map((sum, i) => sum + bias[i % outs])
              const bound = (i) => (k + 3) * EPSILON * (sizes[i] + Math.abs(bias[i % outs])) + rounded[i]
              const what = `${tokens} x ${k} x ${outs}${activations ? ` rounded to ${activations}` : ''}`
              worst = Math.max(worst, within(what, await y.data(), expected, bound))
              const again = device.matmul(tx, on.w, { bias: on.bias, activations })
              sameBits(`${what} again`, await again.bytes(), await y.bytes())
              results.push(y, again)
            }
            if (k % 4 === 0) {
              const tree = device.matmulTree(tx, on.w, { block: 32, whole: true })
              const bound = (i) => (k + 2) * EPSILON * sizes[i]
              worst = Math.max(worst, within(`tree of ${tokens} x ${k} x ${outs}`, await tree.data(), sums, bound))
              const first = Tensor.from(x.subarray(0, k), { shape: [1, k], dtype: xType, device })
              const one = device.matmulTree(first, on.w, { block: 32, whole: true })
              sameBits('the first row of a tree, alone', await one.bytes(), (await tree.bytes()).subarray(0, outs * 4))
              results.push(tree, first, one)
            }
            for (const tensor of [tx, ...results]) tensor.dispose()
          }
          for (const tensor of Object.values(on)) tensor.dispose()
        }
        return `at most ${worst.toFixed(3)} of the bound`
      })
    }
  }
}
