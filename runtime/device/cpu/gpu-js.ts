// Products of the CPU device by the npm package gpu.js: kernels that it compiles to WebAssembly, or to JavaScript where there is none.
import { BackendUnavailableError } from '../../core/errors.ts'
import { matmul, type Product } from './loop-kernels.ts'
import type { Products } from './loops.ts'

/** What is used of gpu.js, whose own types do not know its mode `webasm`. */
export interface GpuJs {
  GPU: new (options: { mode: Mode }) => Gpu
}
type Mode = 'webasm' | 'cpu'
interface Gpu {
  createKernel<Result>(source: string, options: { constants: { k: number }; dynamicOutput: true; dynamicArguments: true }): Kernel<Result>
  destroy(): Promise<void>
}
interface Kernel<Result> {
  setOutput(size: readonly [x: number, y: number]): Kernel<Result>
  (x: Float32Array, w: Float32Array): Result
}

/** By token, the outputs. Sources are text, since gpu.js reads them, whatever a bundler makes of functions. */
const ONE = `function (x, w) {
  const p = this.thread.y * this.constants.k
  const q = this.thread.x * this.constants.k
  let sum = 0
  for (let i = 0; i < this.constants.k; i++) sum += x[p + i] * w[q + i]
  return sum
}`
/** By four tokens, by output, the four: a weight is read once for them. Adds in the order of `ONE`. */
const FOUR = `function (x, w) {
  const p = 4 * this.thread.y * this.constants.k
  const q = this.thread.x * this.constants.k
  let a = 0
  let b = 0
  let c = 0
  let d = 0
  for (let i = 0; i < this.constants.k; i++) {
    const value = w[q + i]
    a += x[p + i] * value
    b += x[p + this.constants.k + i] * value
    c += x[p + 2 * this.constants.k + i] * value
    d += x[p + 3 * this.constants.k + i] * value
  }
  return [a, b, c, d]
}`

/** What one call takes at most: gpu.js copies all operands into memory of its own, which it keeps for calls of the same shape. */
const MOST_WEIGHTS = 2 ** 19
const MOST_TOKENS = 64

/** @throws ERR_BACKEND_UNAVAILABLE where neither of its modes multiplies. */
export function openGpuJs({ GPU }: GpuJs): Products {
  const failures: unknown[] = []
  for (const mode of ['webasm', 'cpu'] as const) {
    try {
      return new GpuJsProducts(new GPU({ mode }), mode)
    } catch (error) {
      failures.push(error)
    }
  }
  throw new BackendUnavailableError(`gpu.js multiplies in neither of its modes: ${failures.join('; ')}; open 'cpu'`, { cause: failures[0] })
}

class GpuJsProducts implements Products {
  readonly kernels: string
  readonly #gpu: Gpu
  /** By k, which gpu.js must know: it ends loops of a length that it is given at run time after a thousand turns. */
  readonly #compiled = new Map<number, { one: Kernel<Float32Array[]>; four: Kernel<Float32Array[][]> }>()

  /** @throws where a product of small integers is not exact. */
  constructor(gpu: Gpu, mode: Mode) {
    this.kernels = `gpu.js ${mode}, TypeScript loops`
    this.#gpu = gpu
    const product = { tokens: 5, k: 1027, outs: 6 }
    const x = Float32Array.from({ length: product.tokens * product.k }, (_, i) => (i % 7) - 3)
    const w = Float32Array.from({ length: product.outs * product.k }, (_, i) => (i % 5) - 2)
    const expected = matmul(x, w, product, null)
    if (!this.matmul(x, w, product, null).every((value, i) => value === expected[i])) {
      this.close()
      throw new Error(`its ${mode} kernels give wrong products`)
    }
  }

  /** Sums in float32 or, in the mode `cpu`, float64, in the order of k whatever else is multiplied. */
  matmul(x: Float32Array, w: Float32Array, { tokens, k, outs }: Product, bias: Float32Array | null): Float32Array {
    const y = new Float32Array(tokens * outs)
    // Pieces of like size, of which the last may begin in the one before: shapes are few. Whole fours are what WebAssembly takes at once.
    const most = Math.max(4, MOST_WEIGHTS / k)
    const rows = Math.min(outs, 4 * Math.ceil(outs / Math.ceil(outs / most) / 4))
    for (let t = 0, count = 0; t < tokens; t += count) {
      const left = tokens - t
      count = left < 4 ? left : Math.min(MOST_TOKENS, left - (left % 4))
      for (let at = 0; at < outs; at += rows) {
        const o = Math.min(at, outs - rows)
        const operands = [x.subarray(t * k, (t + count) * k), w.subarray(o * k, (o + rows) * k)] as const
        if (count < 4) {
          const sums = this.#kernels(k).one.setOutput([rows, count])(...operands)
          for (const [i, row] of sums.entries()) y.set(row, (t + i) * outs + o)
        } else {
          const sums = this.#kernels(k).four.setOutput([rows, count / 4])(...operands)
          for (const [four, row] of sums.entries()) {
            for (const [j, values] of row.entries()) {
              for (let i = 0; i < 4; i++) y[(t + 4 * four + i) * outs + o + j] = values[i] as number
            }
          }
        }
      }
    }
    if (bias) for (let i = 0; i < y.length; i++) y[i] = (y[i] as number) + (bias[i % outs] as number)
    return y
  }

  #kernels(k: number): { one: Kernel<Float32Array[]>; four: Kernel<Float32Array[][]> } {
    let kernels = this.#compiled.get(k)
    if (!kernels) {
      const options = { constants: { k }, dynamicOutput: true, dynamicArguments: true } as const
      kernels = { one: this.#gpu.createKernel(ONE, options), four: this.#gpu.createKernel(FOUR, options) }
      this.#compiled.set(k, kernels)
    }
    return kernels
  }

  close(): void {
    void this.#gpu.destroy()
  }
}
