// Seeded random numbers for tests: print the seed in a failure, set RANKMESH_TEST_SEED to repeat it.
import { randomInt } from 'node:crypto'

/** A fresh 32-bit seed, or the one in RANKMESH_TEST_SEED. */
export function seed(): number {
  const given = process.env.RANKMESH_TEST_SEED
  if (given === undefined || given === '') return randomInt(2 ** 32)
  const value = Number(given)
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** 32)
    throw new Error(`RANKMESH_TEST_SEED must be an integer in [0, 2^32), got "${given}"`)
  return value
}

/** The same seed always gives the same numbers. A 32-bit Weyl counter whose value is scrambled; not for secrets. */
export class Random {
  #counter: number

  constructor(seedValue: number) {
    this.#counter = seedValue >>> 0
  }

  /** 32 random bits as an integer in [0, 2^32). */
  bits(): number {
    this.#counter = (this.#counter + 0x9e3779b9) >>> 0
    let word = this.#counter
    word = Math.imul(word ^ (word >>> 16), 0x85ebca6b)
    word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35)
    return (word ^ (word >>> 16)) >>> 0
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    return this.bits() / 2 ** 32
  }

  /** Standard normal, by the Box-Muller transform. */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()))
    return radius * Math.cos(2 * Math.PI * this.uniform())
  }

  /** Uniform integer in [0, n). */
  int(n: number): number {
    if (!Number.isInteger(n) || n < 1 || n > 2 ** 32) throw new Error(`Random.int needs an integer from 1 to 2^32, got ${n}`)
    return Math.floor(this.uniform() * n)
  }

  /** n normal values times `scale`, rounded to float32. */
  floats(n: number, scale = 1): Float32Array {
    const values = new Float32Array(n)
    for (let i = 0; i < n; i++) values[i] = this.normal() * scale
    return values
  }
}
