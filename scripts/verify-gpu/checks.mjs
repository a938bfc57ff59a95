// What the checks share: random data from a seed, results that are told one by one, comparison within bounds or of bits.
import { decode, encode } from 'rankmesh'

/** Thrown by a check that cannot be made here. */
export class Skip extends Error {}

export class Report {
  #tell

  constructor(tell) {
    this.#tell = tell
  }

  /** `run` throws where the check fails; what it gives is added to the line. */
  async check(name, run) {
    try {
      this.#tell({ status: 'PASS', name, detail: (await run()) ?? '' })
    } catch (error) {
      if (error instanceof Skip) this.#tell({ status: 'SKIP', name, detail: error.message })
      else
        this.#tell({
          status: 'FAIL',
          name,
          detail: `${error?.code ? `${error.code} ` : ''}${error?.message ?? error}`.replaceAll(/\s*\n\s*/g, ' '),
        })
    }
  }

  /** A measurement: a line of a table, and `values` for the JSON file. */
  figure(name, values, line) {
    this.#tell({ figure: name, ...values, line })
  }
}

/** The same seed always gives the same numbers. */
export class Random {
  #counter

  constructor(seed) {
    this.#counter = seed >>> 0
  }

  /** In [0, 1). */
  uniform() {
    this.#counter = (this.#counter + 0x9e3779b9) >>> 0
    let word = this.#counter
    word = Math.imul(word ^ (word >>> 16), 0x85ebca6b)
    word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35)
    return ((word ^ (word >>> 16)) >>> 0) / 2 ** 32
  }

  int(n) {
    return Math.floor(this.uniform() * n)
  }

  normal() {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform())
  }

  /** n normal values that `dtype` holds exactly. */
  floats(n, dtype = 'float32', scale = 1) {
    return decode(
      dtype,
      encode(
        dtype,
        Float32Array.from({ length: n }, () => this.normal() * scale),
      ),
    )
  }
}

export const FLOATS = ['float32', 'bfloat16', 'float16']
/** From one value of a dtype to the next, as a share of the value, at most. */
export const STEP = { float32: 2 ** -23, bfloat16: 2 ** -7, float16: 2 ** -10 }
/** Half of the smallest value above zero. */
export const LEAST = { float32: 2 ** -150, bfloat16: 2 ** -134, float16: 2 ** -25 }

/** @throws where an element is further from what it should be than its bound; gives the worst share of a bound. */
export function within(what, actual, expected, bound) {
  if (actual.length !== expected.length) throw new Error(`${what}: ${actual.length} elements, expected ${expected.length}`)
  let worst = 0
  for (let i = 0; i < expected.length; i++) {
    const [error, most] = [Math.abs(actual[i] - expected[i]), bound(i)]
    if (!(error <= most)) throw new Error(`${what}: element ${i} is ${actual[i]}, expected ${expected[i]} within ${most}`)
    if (error > 0) worst = Math.max(worst, error / most)
  }
  return worst
}

/** @throws where a bit differs. */
export function sameBits(what, actual, expected) {
  if (actual.length === expected.length && Buffer.compare(actual, expected) === 0) return
  const at = actual.findIndex((byte, i) => byte !== expected[i])
  throw new Error(`${what}: byte ${at} of ${actual.length} is ${actual[at]}, expected ${expected[at]} (of ${expected.length})`)
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}
