// The operations of the CPU device as plain loops. Products and softmax keep sums in float64 and round once; all else has every step defined.
import { attend, type CacheRows, normScale, siluMul as siluMulOf } from '../../core/portable.ts'

const { fround } = Math

export function embedding(ids: Uint32Array, table: Float32Array, n: number, first: number): Float32Array {
  const y = new Float32Array(ids.length * n)
  for (const [t, id] of ids.entries()) {
    const row = id - first
    if (row >= 0 && (row + 1) * n <= table.length) y.set(table.subarray(row * n, (row + 1) * n), t * n)
  }
  return y
}

export interface Product {
  tokens: number
  k: number
  outs: number
}

/** Four outputs of one or two tokens at a time: what they share is read once, and no addition waits for the one before it. */
export function matmul(x: Float32Array, w: Float32Array, product: Product, bias: Float32Array | null): Float32Array {
  const { tokens, outs } = product
  const sums = new Float64Array(tokens * outs)
  for (let t = 0; t < tokens; t += 2) {
    const multiply = t + 1 < tokens ? multiplyTwo : multiplyOne
    for (let o = 0; o < outs; o += 4) multiply(x, w, product, t, o, sums)
  }
  if (bias) for (let i = 0; i < sums.length; i++) sums[i] = (sums[i] as number) + (bias[i % outs] as number)
  return new Float32Array(sums)
}

/** Of token t, outputs o to o + 3; where there are fewer, the last one several times. */
function multiplyOne(x: Float32Array, w: Float32Array, { k, outs }: Product, t: number, o: number, sums: Float64Array): void {
  const last = outs - 1
  const [o1, o2, o3] = [Math.min(o + 1, last), Math.min(o + 2, last), Math.min(o + 3, last)]
  const [p, q, q1, q2, q3] = [t * k, o * k, o1 * k, o2 * k, o3 * k]
  let [a, b, c, d] = [0, 0, 0, 0]
  for (let i = 0; i < k; i++) {
    const xi = x[p + i] as number
    a += xi * (w[q + i] as number)
    b += xi * (w[q1 + i] as number)
    c += xi * (w[q2 + i] as number)
    d += xi * (w[q3 + i] as number)
  }
  const at = t * outs
  sums[at + o] = a
  sums[at + o1] = b
  sums[at + o2] = c
  sums[at + o3] = d
}

/** As `multiplyOne`, of tokens t and t + 1. */
function multiplyTwo(x: Float32Array, w: Float32Array, { k, outs }: Product, t: number, o: number, sums: Float64Array): void {
  const last = outs - 1
  const [o1, o2, o3] = [Math.min(o + 1, last), Math.min(o + 2, last), Math.min(o + 3, last)]
  const [p, r, q, q1, q2, q3] = [t * k, (t + 1) * k, o * k, o1 * k, o2 * k, o3 * k]
  let [a, b, c, d, e, f, g, h] = [0, 0, 0, 0, 0, 0, 0, 0]
  for (let i = 0; i < k; i++) {
    const xi = x[p + i] as number
    const zi = x[r + i] as number
    const w0 = w[q + i] as number
    const w1 = w[q1 + i] as number
    const w2 = w[q2 + i] as number
    const w3 = w[q3 + i] as number
    a += xi * w0
    b += xi * w1
    c += xi * w2
    d += xi * w3
    e += zi * w0
    f += zi * w1
    g += zi * w2
    h += zi * w3
  }
  const at = t * outs
  sums[at + o] = a
  sums[at + o1] = b
  sums[at + o2] = c
  sums[at + o3] = d
  const next = at + outs
  sums[next + o] = e
  sums[next + o1] = f
  sums[next + o2] = g
  sums[next + o3] = h
}

/** As shaders/matmul_tree.wgsl, addition by addition: in a block, quad by quad, ((a + b) + c) + d with every product rounded. */
export function matmulTree(
  x: Float32Array,
  w: Float32Array,
  { tokens, k, outs, block, first, whole }: Product & { block: number; first: number; whole: number },
  bias: Float32Array | null,
): Float32Array {
  const term = (xi: number, wi: number): number => fround((x[xi] as number) * (w[wi] as number))
  const results: number[][] = []
  for (let t = 0; t < tokens; t++) {
    for (let o = 0; o < outs; o++) {
      const nodes: number[] = []
      for (let at = 0, blocks = 1; at < k; at += block, blocks++) {
        let sum = 0
        for (let i = at; i < Math.min(at + block, k); i += 4) {
          const [xi, wi] = [t * k + i, o * k + i]
          const quad = fround(fround(fround(term(xi, wi) + term(xi + 1, wi + 1)) + term(xi + 2, wi + 2)) + term(xi + 3, wi + 3))
          sum = fround(sum + quad)
        }
        // This block ends a subtree of 2, 4, 8 ... blocks while its index is odd; the left half is here if the rank holds it.
        for (let index = first + blocks - 1, width = 2; index % 2 === 1 && blocks >= width; index = (index - 1) / 2, width *= 2)
          sum = fround((nodes.pop() as number) + sum)
        nodes.push(sum)
      }
      if (whole) while (nodes.length > 1) nodes.push(join(nodes.pop() as number, nodes.pop() as number))
      results.push(nodes)
    }
  }
  const count = (results[0] as number[]).length
  const y = new Float32Array(count * tokens * outs)
  for (const [i, nodes] of results.entries()) {
    for (const [n, sum] of nodes.entries()) y[n * tokens * outs + i] = bias ? sum + (bias[i % outs] as number) : sum
  }
  return y
}

function join(right: number, left: number): number {
  return fround(left + right)
}

export interface Heads {
  tokens: number
  heads: number
  kvHeads: number
  dim: number
  start: number
}

/** `keys` and `values` begin at the row of the first token. */
export function rope(
  x: Float32Array,
  table: Float32Array,
  { tokens, heads, kvHeads, dim, start }: Heads,
  to: { q: Float32Array; keys: Float32Array; values: Float32Array },
): void {
  const all = heads + 2 * kvHeads
  const half = dim / 2
  for (let t = 0; t < tokens; t++) {
    for (let head = 0; head < all; head++) {
      const from = (t * all + head) * dim
      if (head >= heads + kvHeads) {
        to.values.set(x.subarray(from, from + dim), (t * kvHeads + head - heads - kvHeads) * dim)
        continue
      }
      const [out, at] = head < heads ? [to.q, (t * heads + head) * dim] : [to.keys, (t * kvHeads + head - heads) * dim]
      for (let i = 0; i < half; i++) {
        const [a, b] = [x[from + i] as number, x[from + i + half] as number]
        const angle = ((start + t) * half + i) * 2
        const [cosine, sine] = [table[angle] as number, table[angle + 1] as number]
        out[at + i] = fround(a * cosine) - fround(b * sine)
        out[at + i + half] = fround(b * cosine) + fround(a * sine)
      }
    }
  }
}

export function attention(
  q: Float32Array,
  keys: Float32Array,
  values: Float32Array,
  { tokens, heads, kvHeads, dim, start, window, scale }: Heads & { window: number; scale: number },
): Float32Array {
  const y = new Float32Array(q.length)
  const pitch = kvHeads * dim
  for (let t = 0; t < tokens; t++) {
    const here = start + t
    const first = window > 0 ? Math.max(0, here + 1 - window) : 0
    for (let head = 0; head < heads; head++) {
      const own = (t * heads + head) * dim
      const at = first * pitch + Math.floor(head / (heads / kvHeads)) * dim
      const [k, v] = [keys, values].map((cache) => ({ values: cache, at, pitch })) as [CacheRows, CacheRows]
      attend(q.subarray(own, own + dim), k, v, { keys: here + 1 - first, dim, scale }, y.subarray(own, own + dim))
    }
  }
  return y
}

export function siluMul(x: Float32Array, rows: number, n: number): Float32Array {
  const y = new Float32Array(rows * n)
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < n; i++) y[r * n + i] = siluMulOf(x[r * 2 * n + i] as number, x[r * 2 * n + n + i] as number)
  }
  return y
}

export function rmsNorm(x: Float32Array, weight: Float32Array, n: number, eps: number, centered: number): Float32Array {
  const y = new Float32Array(x.length)
  for (let from = 0; from < x.length; from += n) {
    const scale = normScale(x.subarray(from, from + n), eps)
    for (let i = 0; i < n; i++) y[from + i] = fround((x[from + i] as number) * scale) * fround((weight[i] as number) + centered)
  }
  return y
}

export function softmax(x: Float32Array, n: number): Float32Array {
  const y = new Float32Array(x.length)
  for (let from = 0; from < x.length; from += n) y.set(exponentials(Float64Array.from(x.subarray(from, from + n))), from)
  return y
}

/** e^x over the sum of all e^x. */
function exponentials(x: Float64Array): Float64Array {
  let top = Number.NEGATIVE_INFINITY
  for (const value of x) if (value > top) top = value
  const powers = x.map((value) => Math.exp(value - top))
  let sum = 0
  for (const power of powers) sum += power
  return powers.map((power) => power / sum)
}

/** NaN counts as lowest, -0 as 0; of equals the lower index comes first. */
export function topK(x: Float32Array, n: number, k: number, values: Float32Array, indices: Uint32Array): void {
  for (let r = 0; r * n < x.length; r++) {
    const row = x.slice(r * n, (r + 1) * n)
    const order = Uint32Array.from(row, (_, i) => i).sort((i, j) => {
      const [a, b] = [row[i] as number, row[j] as number]
      const [missing, other] = [Number.isNaN(a), Number.isNaN(b)]
      if (missing !== other) return missing ? 1 : -1
      return a === b || missing ? i - j : a > b ? -1 : 1
    })
    for (let i = 0; i < k; i++) {
      const at = order[i] as number
      values[r * k + i] = row[at] as number
      indices[r * k + i] = at
    }
  }
}
