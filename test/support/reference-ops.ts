// Float64 reference of every operation, in plain loops, that tests compare the library with; imports nothing of the library.

/** Tensors are flat and row-major; the shapes come as arguments. */
export type Numbers = Float64Array | Float32Array | readonly number[]

function widen(values: Numbers): Float64Array {
  return values instanceof Float64Array ? values : new Float64Array(values)
}

function checkLength(what: string, values: { length: number }, length: number): void {
  if (values.length !== length) throw new Error(`${what} has ${values.length} elements, its shape has ${length}`)
}

/** x [t, k] times the transpose of w [n, k], plus bias [n] if given: [t, n]. */
export function matmul(x: Numbers, w: Numbers, shape: { t: number; k: number; n: number }, bias?: Numbers): Float64Array {
  const { t, k, n } = shape
  checkLength('x', x, t * k)
  checkLength('w', w, n * k)
  if (bias) checkLength('bias', bias, n)
  const a = widen(x)
  const b = widen(w)
  const out = new Float64Array(t * n)
  for (let row = 0; row < t; row++) {
    for (let column = 0; column < n; column++) {
      let sum = 0
      const aStart = row * k
      const bStart = column * k
      for (let i = 0; i < k; i++) sum += a[aStart + i]! * b[bStart + i]!
      out[row * n + column] = bias ? sum + bias[column]! : sum
    }
  }
  return out
}

export function add(a: Numbers, b: Numbers): Float64Array {
  checkLength('b', b, a.length)
  const out = new Float64Array(a.length)
  for (let i = 0; i < out.length; i++) out[i] = a[i]! + b[i]!
  return out
}

export interface NormShape {
  t: number
  h: number
  eps: number
  /** Multiply by 1 + gamma rather than by gamma. */
  zeroCentered?: boolean
}

/** Each row of x [t, h] divided by sqrt(mean(row^2) + eps), times gamma [h]. */
export function rmsNorm(x: Numbers, gamma: Numbers, { t, h, eps, zeroCentered = false }: NormShape): Float64Array {
  checkLength('x', x, t * h)
  checkLength('gamma', gamma, h)
  const out = new Float64Array(t * h)
  for (let row = 0; row < t; row++) {
    let squares = 0
    for (let i = 0; i < h; i++) squares += x[row * h + i]! * x[row * h + i]!
    const inverse = 1 / Math.sqrt(squares / h + eps)
    for (let i = 0; i < h; i++) {
      const weight = zeroCentered ? 1 + gamma[i]! : gamma[i]!
      out[row * h + i] = x[row * h + i]! * inverse * weight
    }
  }
  return out
}

/** silu(gate) * up, for rows [t, 2 * i] that hold i gate values and then i up values: [t, i]. */
export function siluMul(gateUp: Numbers, { t, i }: { t: number; i: number }): Float64Array {
  checkLength('gateUp', gateUp, t * 2 * i)
  const out = new Float64Array(t * i)
  for (let row = 0; row < t; row++) {
    for (let column = 0; column < i; column++) {
      const gate = gateUp[row * 2 * i + column]!
      const up = gateUp[row * 2 * i + i + column]!
      out[row * i + column] = (gate / (1 + Math.exp(-gate))) * up
    }
  }
  return out
}

/** The numbers of Llama 3's rope scaling, named as in config.json. */
export interface Llama3Scaling {
  factor: number
  lowFreqFactor: number
  highFreqFactor: number
  originalMaxPositionEmbeddings: number
}

/**
 * theta^(-2i / headDim) for i below headDim / 2. Llama 3's scaling divides the frequencies of long wavelengths by `factor`,
 * keeps those of short wavelengths, and goes over linearly (in rotations over the original context) between the two.
 */
export function inverseFrequencies(headDim: number, theta: number, scaling?: Llama3Scaling): Float64Array {
  const out = new Float64Array(headDim / 2)
  for (let i = 0; i < out.length; i++) {
    const frequency = theta ** ((-2 * i) / headDim)
    out[i] = frequency
    if (!scaling) continue
    const rotations = (scaling.originalMaxPositionEmbeddings * frequency) / (2 * Math.PI)
    const kept = (rotations - scaling.lowFreqFactor) / (scaling.highFreqFactor - scaling.lowFreqFactor)
    const share = Math.min(1, Math.max(0, kept))
    out[i] = share * frequency + (1 - share) * (frequency / scaling.factor)
  }
  return out
}

/**
 * Rotary embedding of x [t, heads, headDim]: in every head the pair (i, i + r) is rotated by position * inverseFrequencies[i],
 * where r is the number of frequencies; elements from 2 * r on stay as they are.
 */
export function rope(
  x: Numbers,
  shape: { t: number; heads: number; headDim: number },
  positions: ArrayLike<number>,
  frequencies: Numbers,
): Float64Array {
  const { t, heads, headDim } = shape
  const half = frequencies.length
  checkLength('x', x, t * heads * headDim)
  checkLength('positions', positions, t)
  if (2 * half > headDim) throw new Error(`${half} frequencies are too many for heads of ${headDim}`)
  const out = new Float64Array(x)
  for (let row = 0; row < t; row++) {
    for (let head = 0; head < heads; head++) {
      const start = (row * heads + head) * headDim
      for (let i = 0; i < half; i++) {
        const angle = positions[row]! * frequencies[i]!
        const first = x[start + i]!
        const second = x[start + half + i]!
        out[start + i] = first * Math.cos(angle) - second * Math.sin(angle)
        out[start + half + i] = second * Math.cos(angle) + first * Math.sin(angle)
      }
    }
  }
  return out
}

export interface AttentionShape {
  /** Query rows. */
  t: number
  /** Rows of k and v; row j is the key and value of position j. */
  s: number
  heads: number
  /** Query head h reads key/value head floor(h / (heads / kvHeads)). */
  kvHeads: number
  headDim: number
  /** Position of query row 0; by default s - t, so that the last query sees every row. */
  start?: number
  /** Query position i sees key position j if i - window < j <= i; without a window, if j <= i. */
  window?: number
  /** By default 1 / sqrt(headDim). */
  scale?: number
}

/** Causal attention of q [t, heads, headDim] over a cache k, v [s, kvHeads, headDim]: [t, heads, headDim]. */
export function attention(q: Numbers, k: Numbers, v: Numbers, shape: AttentionShape): Float64Array {
  const { t, s, heads, kvHeads, headDim, start = s - t, window = Number.POSITIVE_INFINITY, scale = 1 / Math.sqrt(headDim) } = shape
  checkLength('q', q, t * heads * headDim)
  checkLength('k', k, s * kvHeads * headDim)
  checkLength('v', v, s * kvHeads * headDim)
  if (heads % kvHeads !== 0) throw new Error(`${heads} heads do not divide over ${kvHeads} key/value heads`)
  if (start < 0 || start + t > s) throw new Error(`queries at ${start} to ${start + t} lie outside a cache of ${s} rows`)
  if (!(window >= 1)) throw new Error(`a window of ${window} sees nothing`)
  const group = heads / kvHeads
  const out = new Float64Array(t * heads * headDim)
  for (let row = 0; row < t; row++) {
    const last = start + row
    const first = Math.max(0, last - window + 1)
    const visible = last - first + 1
    for (let head = 0; head < heads; head++) {
      const kvHead = Math.floor(head / group)
      const qStart = (row * heads + head) * headDim
      const scores = new Float64Array(visible)
      for (let j = 0; j < visible; j++) {
        const kStart = ((first + j) * kvHeads + kvHead) * headDim
        let dot = 0
        for (let i = 0; i < headDim; i++) dot += q[qStart + i]! * k[kStart + i]!
        scores[j] = dot * scale
      }
      const weights = softmax(scores, { t: 1, n: visible })
      for (let j = 0; j < visible; j++) {
        const vStart = ((first + j) * kvHeads + kvHead) * headDim
        for (let i = 0; i < headDim; i++) out[qStart + i] = out[qStart + i]! + weights[j]! * v[vStart + i]!
      }
    }
  }
  return out
}

/** The rows `ids` of a table [vocab, h]: [ids.length, h]. */
export function embedding(ids: ArrayLike<number>, table: Numbers, { vocab, h }: { vocab: number; h: number }): Float64Array {
  checkLength('table', table, vocab * h)
  const out = new Float64Array(ids.length * h)
  for (let row = 0; row < ids.length; row++) {
    const id = ids[row]!
    if (!Number.isInteger(id) || id < 0 || id >= vocab) throw new Error(`id ${id} is not in a vocabulary of ${vocab}`)
    for (let i = 0; i < h; i++) out[row * h + i] = table[id * h + i]!
  }
  return out
}

/** Softmax of every row of x [t, n]. */
export function softmax(x: Numbers, { t, n }: { t: number; n: number }): Float64Array {
  checkLength('x', x, t * n)
  const out = new Float64Array(t * n)
  for (let row = 0; row < t; row++) {
    let largest = Number.NEGATIVE_INFINITY
    for (let i = 0; i < n; i++) largest = Math.max(largest, x[row * n + i]!)
    let sum = 0
    for (let i = 0; i < n; i++) {
      out[row * n + i] = Math.exp(x[row * n + i]! - largest)
      sum += out[row * n + i]!
    }
    for (let i = 0; i < n; i++) out[row * n + i] = out[row * n + i]! / sum
  }
  return out
}

/** Index of the largest value; of equal ones, the lowest. */
export function argmax(x: Numbers): number {
  return topK(x, 1).indices[0]!
}

/** The k largest values, largest first; of equal ones, the lower index first. */
export function topK(x: Numbers, k: number): { indices: number[]; values: number[] } {
  if (!Number.isInteger(k) || k < 1 || k > x.length) throw new Error(`topK(${k}) of ${x.length} values`)
  const indices: number[] = []
  for (let i = 0; i < x.length; i++) {
    if (Number.isNaN(x[i]!)) throw new Error(`value ${i} is NaN`)
    let place = indices.length
    while (place > 0 && x[indices[place - 1]!]! < x[i]!) place--
    if (place >= k) continue
    indices.splice(place, 0, i)
    if (indices.length > k) indices.pop()
  }
  return { indices, values: indices.map((index) => x[index]!) }
}

export type ReduceOp = 'sum' | 'prod' | 'min' | 'max' | 'avg'

/** Element i of the result combines element i of every rank. */
export function allReduce(ranks: readonly Numbers[], op: ReduceOp): Float64Array {
  const [head, ...others] = ranks
  if (!head) throw new Error('allReduce needs at least one rank')
  const out = new Float64Array(head)
  for (const rank of others) {
    checkLength('a rank', rank, out.length)
    for (let i = 0; i < out.length; i++) {
      const a = out[i]!
      const b = rank[i]!
      if (op === 'prod') out[i] = a * b
      else if (op === 'min') out[i] = Math.min(a, b)
      else if (op === 'max') out[i] = Math.max(a, b)
      else out[i] = a + b
    }
  }
  if (op === 'avg') for (let i = 0; i < out.length; i++) out[i] = out[i]! / ranks.length
  return out
}

/** residual + sum over ranks [t, h] + bias [h], and the RMS norm of that. */
export function allReduceResidualBiasRmsNorm(
  inputs: { ranks: readonly Numbers[]; residual: Numbers; bias?: Numbers | undefined; gamma: Numbers },
  shape: NormShape,
): { residual: Float64Array; out: Float64Array } {
  const { t, h } = shape
  const residual = add(inputs.residual, allReduce(inputs.ranks, 'sum'))
  checkLength('residual', residual, t * h)
  if (inputs.bias) {
    checkLength('bias', inputs.bias, h)
    for (let i = 0; i < residual.length; i++) residual[i] = residual[i]! + inputs.bias[i % h]!
  }
  return { residual, out: rmsNorm(residual, inputs.gamma, shape) }
}

function difference(actual: number, expected: number): number {
  return actual === expected ? 0 : Math.abs(actual - expected)
}

/** Largest |actual - expected|; NaN if any value is NaN. */
export function maxAbsDiff(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  checkLength('actual', actual, expected.length)
  let worst = 0
  for (let i = 0; i < expected.length; i++) worst = Math.max(worst, difference(actual[i]!, expected[i]!))
  return worst
}

/** Largest |actual - expected| / max(|expected|, floor), an equal pair counting 0; NaN if any value is NaN. */
export function maxRelDiff(actual: ArrayLike<number>, expected: ArrayLike<number>, floor = 0): number {
  checkLength('actual', actual, expected.length)
  let worst = 0
  for (let i = 0; i < expected.length; i++) {
    const off = difference(actual[i]!, expected[i]!)
    worst = Math.max(worst, off === 0 ? 0 : off / Math.max(Math.abs(expected[i]!), floor))
  }
  return worst
}

/**
 * Throws unless |actual - expected| <= abs + rel * |expected| for every element. NaN is never close, an infinity only to itself.
 */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { abs = 0, rel = 0, what = 'values' }: { abs?: number; rel?: number; what?: string },
): void {
  if (actual.length !== expected.length) throw new Error(`${what}: ${actual.length} elements, expected ${expected.length}`)
  let bad = 0
  let worst = -1
  let worstExcess = Number.NEGATIVE_INFINITY
  for (let i = 0; i < expected.length; i++) {
    const a = actual[i]!
    const e = expected[i]!
    if (a === e) continue
    const finite = Number.isFinite(a) && Number.isFinite(e)
    const off = Math.abs(a - e)
    const allowed = abs + rel * Math.abs(e)
    if (finite && off <= allowed) continue
    bad++
    const excess = finite ? off - allowed : Number.POSITIVE_INFINITY
    if (worst < 0 || excess > worstExcess) {
      worst = i
      worstExcess = excess
    }
  }
  if (bad === 0) return
  const a = actual[worst]!
  const e = expected[worst]!
  throw new Error(
    `${what}: ${bad} of ${expected.length} elements differ; the worst is [${worst}]: got ${a}, expected ${e}, ` +
      `off by ${Math.abs(a - e)} (abs ${abs}, rel ${rel})`,
  )
}
