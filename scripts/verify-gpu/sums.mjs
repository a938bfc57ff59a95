// Collectives and fused collectives of one rank against float64, twice, and digests by which ranks compare their bits.
import { createHash } from 'node:crypto'
import {
  decode,
  decodeFp8e4m3,
  decodeUe8m0,
  AllReduceFusionPattern as P,
  packedScaleOffset,
  packedScales,
  QuantizationSFLayout,
  Tensor,
} from 'rankmesh'
import { LEAST, Random, STEP, sameBits, within } from './checks.mjs'

const EPSILON = 2 ** -23

/** `shapes`: of [rows, n], n a multiple of 16 and of the number of ranks. Throws what is wrong; gives digests that all ranks must have alike. */
export async function collectives(context, { seed, shapes, dtypes }) {
  const digests = []
  for (let round = 0; round < 2; round++) {
    const hash = createHash('sha256')
    const own = createHash('sha256')
    const random = new Random(seed)
    for (const [rows, n] of shapes) {
      for (const dtype of dtypes) await one(context, { rows, n, dtype, random, hash, own })
    }
    digests.push({ common: hash.digest('hex'), own: own.digest('hex') })
  }
  if (digests[0].common !== digests[1].common || digests[0].own !== digests[1].own)
    throw new Error('the second run gave other bits than the first')
  return { digest: digests[0].common }
}

async function one({ rank, size, comm, device }, { rows, n, dtype, random, hash, own }) {
  const count = rows * n
  const parts = Array.from({ length: size }, () => random.floats(count, dtype))
  const [residual, gamma, bias] = [random.floats(count, dtype), random.floats(n, dtype), random.floats(n, dtype)]
  const at = (values, shape = [rows, n]) => Tensor.from(values, { shape, dtype, device })
  const x = at(parts[rank])
  const what = `${rows} x ${n} of ${dtype}`
  const sums = new Float64Array(count)
  const sizes = new Float64Array(count)
  for (const part of parts) {
    for (let i = 0; i < count; i++) {
      sums[i] += part[i]
      sizes[i] += Math.abs(part[i])
    }
  }
  /** Float32 sums of so many terms, then one rounding to the dtype. */
  const step = dtype === 'float32' ? 0 : STEP[dtype] / 2
  const near = (value, terms) => (size + 2) * EPSILON * terms + step * Math.abs(value) + 2 * LEAST[dtype]
  const add = async (tensor, to = hash) => {
    const bytes = await tensor.bytes()
    to.update(bytes)
    return bytes
  }

  const sum = await comm.allReduce(x)
  await add(sum)
  within(`all-reduce of ${what}`, await sum.data(), sums, (i) => near(sums[i], sizes[i]))
  const joined = (join) => Float64Array.from(parts[0], (first, i) => parts.slice(1).reduce((all, part) => join(all, part[i]), first))
  const products = joined((a, b) => a * b)
  for (const [op, exact, allowed] of [
    ['min', joined(Math.min), () => 0],
    ['max', joined(Math.max), () => 0],
    ['prod', products, (i) => near(products[i], Math.abs(products[i]))],
    ['avg', sums.map((value) => value / size), (i) => near(sums[i] / size, sizes[i] / size)],
  ]) {
    const y = await comm.allReduce(x, { op })
    await add(y)
    within(`${op} of ${what}`, await y.data(), exact, allowed)
    y.dispose()
  }

  const width = n / size
  const piece = await comm.reduceScatter(x)
  await add(piece, own)
  const from = (i) => Math.floor(i / width) * n + rank * width + (i % width)
  const expected = Float64Array.from({ length: rows * width }, (_, i) => sums[from(i)])
  within(`reduce-scatter of ${what}`, await piece.data(), expected, (i) => near(expected[i], sizes[from(i)]))

  const all = await comm.allGather(x)
  const wide = Float32Array.from({ length: count * size }, (_, i) => {
    const column = i % (n * size)
    return parts[Math.floor(column / n)][Math.floor(i / (n * size)) * n + (column % n)]
  })
  sameBits(`all-gather of ${what}`, await add(all), await Tensor.from(wide, { shape: [rows, n * size], dtype }).bytes())
  const told = await comm.broadcast(x, { src: size - 1 })
  sameBits(`broadcast of ${what}`, await add(told), await Tensor.from(parts[size - 1], { shape: [rows, n], dtype }).bytes())

  // Fused: the residual stream, then its norm.
  const kept = at(residual)
  const norm = await comm.allReduceResidualBiasRMSNorm({ x, residual: kept, weight: at(gamma, [n]), bias: at(bias, [n]), eps: 1e-5 })
  const stream = sums.map((value, i) => value + residual[i] + bias[i % n])
  const terms = sizes.map((value, i) => value + Math.abs(residual[i]) + Math.abs(bias[i % n]))
  await checkNorm(`fused norm of ${what}`, { stream, terms, residualOut: kept, normOut: norm, eps: 1e-5, gamma, n, near, dtype, add })

  const patterns = Object.entries(P).filter(([, pattern]) => pattern !== 6 && pattern !== 7)
  for (const [name, pattern] of patterns) {
    const scaleFactor = pattern === P.kARResidualRMSNormFP4Quant || pattern === P.kARResidualRMSNormOutFP4Quant ? 64 : 1 / 64
    const norms = { residualIn: at(residual), rmsGamma: at(gamma, [n]), rmsEps: 1e-5, scaleFactor, layoutCode: QuantizationSFLayout.LINEAR }
    const blocks = pattern === 8 || pattern === 9 ? { blockQuantGroupSize: 16 } : {}
    const fused = await comm.allReduceFusion({ input: x, pattern, ...(pattern === P.kAllReduce ? {} : { ...norms, ...blocks }) })
    const label = `${name} of ${what}`
    for (const tensor of Object.values(fused)) if (tensor) await add(tensor)
    if (fused.output) within(`${label}: sum`, await fused.output.data(), sums, (i) => near(sums[i], sizes[i]))
    if (pattern === P.kAllReduce) continue
    const stream = sums.map((value, i) => value + residual[i])
    const terms = sizes.map((value, i) => value + Math.abs(residual[i]))
    const normed = await checkNorm(label, { stream, terms, ...fused, eps: 1e-5, gamma, n, near, dtype, add })
    if (fused.quantOut) await checkCodes(label, { normed, fused, rows, n, scaleFactor, slack: step + 2 ** -12 })
    for (const tensor of [...Object.values(fused), norms.residualIn, norms.rmsGamma]) tensor?.dispose()
  }
  for (const tensor of [x, sum, piece, all, told, kept, norm]) tensor.dispose()
}

/** The residual against float64, its norm against that of the residual; gives the norm in float64. */
async function checkNorm(what, { stream, terms, residualOut, normOut, eps, gamma, n, near, dtype, add }) {
  if (residualOut) {
    await add(residualOut)
    within(`${what}: residual`, await residualOut.data(), stream, (i) => near(stream[i], terms[i]) * 2)
  }
  const normed = new Float64Array(stream.length)
  const error = new Float64Array(stream.length)
  const step = STEP[dtype]
  for (let row = 0; row < stream.length; row += n) {
    let squares = 0
    for (let i = row; i < row + n; i++) squares += stream[i] ** 2
    const scale = 1 / Math.sqrt(squares / n + eps)
    for (let i = row; i < row + n; i++) {
      normed[i] = stream[i] * scale * gamma[i - row]
      // The residual may be rounded to the dtype before it is normed.
      error[i] =
        (step * (Math.abs(stream[i]) + terms[i] * 2 ** -6) + 4 * near(0, terms[i])) * scale * Math.abs(gamma[i - row]) +
        2 * step * Math.abs(normed[i])
    }
  }
  if (normOut) {
    await add(normOut)
    within(`${what}: norm`, await normOut.data(), normed, (i) => error[i] + 2 ** -20 + 2 * LEAST[dtype])
  }
  return normed
}

/** What codes and scales stand for, against what was quantised: within half a step of the codes, and the rounding of their scales. */
async function checkCodes(what, { normed, fused, rows, n, scaleFactor, slack }) {
  const codes = await fused.quantOut.data()
  const scales = fused.scaleOut && (await fused.scaleOut.bytes())
  const four = fused.quantOut.dtype === 'float4_e2m1x2'
  const place = packedScales(rows, n / 16)
  const scaleOf = (i) => {
    const [row, group] = [Math.floor(i / n), Math.floor((i % n) / 16)]
    if (!scales) return scaleFactor
    if (four) return decodeFp8e4m3(scales[(row * n) / 16 + group]) / scaleFactor
    if (fused.scaleOut.dtype === 'int32') return decodeUe8m0(scales[packedScaleOffset(place, row, group)])
    return decode('float32', scales)[row]
  }
  const values = Float64Array.from(codes, (code, i) => code * scaleOf(i))
  const limit = (value) => (scales ? value : Math.max(-448 * scaleFactor, Math.min(448 * scaleFactor, value)))
  const expected = normed.map((value) => limit(value))
  // Of four bits, a step is at most a third of the largest code.
  const bound = (i) => {
    const scale = Math.abs(scaleOf(i))
    return four ? scale * 1.25 + slack * Math.abs(expected[i]) : Math.abs(expected[i]) * (2 ** -4 + 4 * slack) + scale * 2 ** -9 + 2 ** -12
  }
  within(`${what}: codes`, values, expected, bound)
}
