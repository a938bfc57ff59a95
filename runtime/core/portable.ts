// Float32 arithmetic that has the same bits on every kind of device: each step below is one IEEE operation, rounded to nearest even, in the order
// written here. Numbers below 2^-126 aside, which devices may take for zero. Kernels that say they are portable do the same steps.

const { fround, sqrt } = Math

/** A row's squares are summed in this many lanes: element i in lane i mod 64. */
const NORM_LANES = 64
/** Elements of a product of two heads, and keys of a sum of weights: element i in lane i mod 16. */
const LANES = 16

/** Below it e^x is 0: no smaller power is a normal number. */
export const EXP_LOWEST: number = fround(-87.33)
/** Above it e^x is infinite. */
export const EXP_HIGHEST: number = fround(88.72283)

const LOG2E = fround(Math.LOG2E)
/** Adding it rounds to an integer. */
const ROUNDER = 12582912
const LN2_HIGH = 0.693359375
const LN2_LOW = fround(-2.1219444e-4)
const TAYLOR = [1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1].map(fround)

/** e^x of a float32, within 2 ULP: Cephes' polynomial. */
export function exp(x: number): number {
  if (x < EXP_LOWEST) return 0
  if (x > EXP_HIGHEST) return Number.POSITIVE_INFINITY
  const n = fround(fround(fround(x * LOG2E) + ROUNDER) - ROUNDER)
  const r = fround(fround(x - fround(n * LN2_HIGH)) - fround(n * LN2_LOW))
  let y = TAYLOR[0] as number
  for (let i = 1; i < TAYLOR.length; i++) y = fround(fround(y * r) + (TAYLOR[i] as number))
  return fround(fround(fround(y * fround(r * r)) + r) + 1) * 2 ** n
}

/** silu(gate) * up */
export function siluMul(gate: number, up: number): number {
  return fround(fround(gate / fround(1 + exp(-gate))) * up)
}

/** 1 / sqrt(mean of squares + eps) of a row of float32. */
export function normScale(row: ArrayLike<number>, eps: number): number {
  const lanes = new Float32Array(NORM_LANES)
  for (let i = 0; i < row.length; i++) {
    const value = row[i] as number
    lanes[i % NORM_LANES] = (lanes[i % NORM_LANES] as number) + fround(value * value)
  }
  return fround(1 / fround(sqrt(fround(fround(halved(lanes) / row.length) + fround(eps)))))
}

/** Rows of `dim` elements, at which a head of a cache begins and how far apart they are. */
export interface CacheRows {
  values: Float32Array
  at: number
  pitch: number
}

/** softmax(q k^T * scale) v of one token and head over `keys` rows: scores, their largest, their powers and the sum of these, then each element. */
export function attend(
  q: Float32Array,
  k: CacheRows,
  v: CacheRows,
  { keys, dim, scale }: { keys: number; dim: number; scale: number },
  y: Float32Array,
): void {
  const weights = new Float32Array(keys)
  for (let j = 0; j < keys; j++) weights[j] = dot(q, k.values, k.at + j * k.pitch, dim) * fround(scale)
  let top = weights[0] as number
  for (const score of weights) if (score > top) top = score
  const sums = new Float32Array(LANES)
  for (let j = 0; j < keys; j++) {
    const weight = exp(fround((weights[j] as number) - top))
    weights[j] = weight
    sums[j % LANES] = (sums[j % LANES] as number) + weight
  }
  const sum = halved(sums)
  for (let i = 0; i < dim; i++) {
    let mixed = 0
    for (let j = 0; j < keys; j++) mixed = fround(mixed + fround((weights[j] as number) * (v.values[v.at + j * v.pitch + i] as number)))
    y[i] = mixed / sum
  }
}

function dot(q: Float32Array, k: Float32Array, at: number, dim: number): number {
  const lanes = new Float32Array(LANES)
  for (let i = 0; i < dim; i++) lanes[i % LANES] = (lanes[i % LANES] as number) + fround((q[i] as number) * (k[at + i] as number))
  return halved(lanes)
}

/** Lane i takes lane i + half, for halves down to one: what lane 0 holds then. */
function halved(lanes: Float32Array): number {
  for (let half = lanes.length / 2; half >= 1; half /= 2) {
    for (let lane = 0; lane < half; lane++) lanes[lane] = (lanes[lane] as number) + (lanes[lane + half] as number)
  }
  return lanes[0] as number
}
