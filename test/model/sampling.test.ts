// Sampling: the random words against published ones, distributions against exact probabilities, ties, limits and refusals.
import { describe, expect, test } from 'vitest'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { Descending } from '../../runtime/model/descending.ts'
import { expNegative } from '../../runtime/model/exp.ts'
import { Sampler, type SamplerOptions } from '../../runtime/model/sampling.ts'
import { threefry, uniform } from '../../runtime/model/threefry.ts'
import { Random, seed } from '../support/random.ts'

const F = Float32Array

describe('random words', () => {
  // The known answers that come with the paper's own implementation.
  test.each([
    [
      [0, 0],
      [0, 0],
      [0x6b200159, 0x99ba4efe],
    ],
    [
      [0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x1cb996fc, 0xbb002be7],
    ],
    [
      [0x13198a2e, 0x03707344],
      [0x243f6a88, 0x85a308d3],
      [0xc4923a9c, 0x483df7a0],
    ],
  ] as [[number, number], [number, number], [number, number]][])('of key %j and counter %j', (key, counter, want) => {
    expect(threefry(key, counter)).toEqual(want)
  })

  test('are uniform in [0, 1), and change with every bit of seed and count', () => {
    const draws = Array.from({ length: 20_000 }, (_, i) => uniform(7, i))
    for (const u of draws) expect(u >= 0 && u < 1).toBe(true)
    const counts = new Float64Array(20)
    for (const u of draws) counts[Math.floor(u * 20)]!++
    expect(chiSquare(counts, new Float64Array(20).fill(1 / 20))).toBeLessThan(43.8) // 19 degrees of freedom, 0.1 %
    const some = [uniform(0, 0), uniform(1, 0), uniform(2 ** 32, 0), uniform(2 ** 52, 0), uniform(0, 1), uniform(0, 2 ** 32)]
    expect(new Set(some).size).toBe(some.length)
  })
})

describe('exp', () => {
  test('agrees with Math.exp to a few units in the last place', () => {
    const at = seed()
    const random = new Random(at)
    for (let i = 0; i < 100_000; i++) {
      const x = -708 * random.uniform() ** 3
      expect(Math.abs(expNegative(x) / Math.exp(x) - 1), `seed ${at}: exp(${x})`).toBeLessThan(4 * 2 ** -52)
    }
    expect([0, -0, -709, Number.NEGATIVE_INFINITY].map(expNegative)).toEqual([1, 1, 0, 0])
  })
})

test('indices come from the largest number down, equal ones in order', () => {
  const at = seed()
  const random = new Random(at)
  for (let round = 0; round < 100; round++) {
    const values = F.from({ length: 1 + random.int(50) }, () => random.int(8) - 4)
    const want = [...values.keys()].sort((a, b) => values[b]! - values[a]! || a - b)
    const order = new Descending(values)
    expect(
      want.map(() => order.pop()),
      `seed ${at}, round ${round}`,
    ).toEqual(want)
  }
})

describe('greedy', () => {
  test('takes the largest logit, the first among equals', () => {
    const sampler = new Sampler()
    expect(sampler.next(F.of(1, 3, 2))).toBe(1)
    expect(sampler.next(F.of(3, 3, 3))).toBe(0)
    expect(sampler.next(F.of(Number.NEGATIVE_INFINITY, -5, -5))).toBe(1)
    expect(sampler.next(F.of(-0, 0))).toBe(0)
  })
})

/** Probabilities of all tokens, straight from the definitions: softmax, then the k likeliest, then the smallest set that reaches p. */
function exact(logits: ArrayLike<number>, { temperature = 1, topK = 0, topP = 1 }: SamplerOptions): Float64Array {
  const highest = Math.max(...Array.from(logits))
  const p = Float64Array.from(logits, (x) => Math.exp((x - highest) / temperature))
  const ids = [...p.keys()].sort((a, b) => logits[b]! - logits[a]! || a - b).slice(0, topK || p.length)
  const mass = ids.reduce((sum, id) => sum + p[id]!, 0)
  let reached = 0
  const kept = ids.filter((id) => {
    const before = reached
    reached += p[id]!
    return before < topP * mass
  })
  const total = kept.reduce((sum, id) => sum + p[id]!, 0)
  return p.map((x, id) => (kept.includes(id) ? x / total : 0))
}

function chiSquare(counts: Float64Array, p: Float64Array): number {
  const n = counts.reduce((a, b) => a + b, 0)
  return counts.reduce(
    (sum, count, i) => sum + (p[i] === 0 ? (count === 0 ? 0 : Number.POSITIVE_INFINITY) : (count - n * p[i]!) ** 2 / (n * p[i]!)),
    0,
  )
}

describe('random', () => {
  const logits = F.of(1, 0.5, -1, 2, 2, 0, -3, 1.5)
  test.each<SamplerOptions>([
    { temperature: 1 },
    { temperature: 0.5 },
    { temperature: 3 },
    { temperature: 1, topK: 1 },
    { temperature: 1, topK: 3 },
    { temperature: 1, topK: 100 },
    { temperature: 1, topP: 0.5 },
    { temperature: 1, topP: 0.9 },
    { temperature: 2, topK: 5, topP: 0.7 },
    { temperature: 2, topK: 5, topP: 0.999999 },
    { temperature: 1, topP: 1e-9 },
  ])('follows the exact distribution for %j', (options) => {
    const sampler = new Sampler({ ...options, seed: 20_250 })
    const counts = new Float64Array(logits.length)
    for (let i = 0; i < 40_000; i++) counts[sampler.next(logits)]!++
    expect(chiSquare(counts, exact(logits, options))).toBeLessThan(24.3) // 7 degrees of freedom, 0.1 %
  })

  test('keeps no token beyond those that reach top-p exactly, and among equals the first ones', () => {
    const sampler = new Sampler({ temperature: 1, topP: 0.5 })
    const drawn = new Set(Array.from({ length: 200 }, () => sampler.next(F.of(0, 0, 0, 0))))
    expect([...drawn].sort()).toEqual([0, 1])
  })

  test('draws only from the right set for random logits', () => {
    const at = seed()
    const random = new Random(at)
    for (let round = 0; round < 300; round++) {
      const values = F.from({ length: 1 + random.int(40) }, () => random.int(6))
      const options = { temperature: 0.25 + 2 * random.uniform(), topK: random.int(12), topP: 0.05 + 0.95 * random.uniform() }
      const sampler = new Sampler({ ...options, seed: round })
      const p = exact(values, options)
      for (let i = 0; i < 20; i++)
        expect(p[sampler.next(values)], `seed ${at}, round ${round}, ${JSON.stringify(options)}`).toBeGreaterThan(0)
    }
  })

  test('gives the same tokens for the same seed, others for another', () => {
    const draw = (options: SamplerOptions) => {
      const sampler = new Sampler({ temperature: 1, ...options })
      return Array.from({ length: 32 }, () => sampler.next(logits)).join()
    }
    expect(draw({ seed: 5 })).toBe(draw({ seed: 5 }))
    expect(draw({ seed: 5 })).not.toBe(draw({ seed: 6 }))
    expect(draw({ seed: 5 })).not.toBe(draw({ seed: 5 + 2 ** 32 }))
    // A recorded draw: another machine, engine or release must give it too.
    expect(draw({ seed: 5 })).toBe('3,4,0,4,5,1,4,7,0,7,4,0,3,4,3,4,7,4,4,4,3,1,4,0,3,0,7,0,7,7,7,1')
  })

  test('never draws what is ruled out, and copes with extreme temperatures', () => {
    const some = F.of(Number.NEGATIVE_INFINITY, 0, Number.NEGATIVE_INFINITY, 1)
    for (const options of [
      { temperature: 1e9 },
      { temperature: 1e9, topK: 4 },
      { temperature: 1e9, topP: 0.99 },
      { temperature: 5e-324, topK: 2 },
    ]) {
      const sampler = new Sampler(options)
      for (let i = 0; i < 200; i++) expect([1, 3]).toContain(sampler.next(some))
    }
    const cold = new Sampler({ temperature: 5e-324 })
    for (let i = 0; i < 50; i++) expect(cold.next(logits)).toSatisfy((id: number) => id === 3 || id === 4)
  })
})

describe('refusals', () => {
  const code = (work: () => unknown): string => {
    try {
      work()
    } catch (error) {
      return (error as RankmeshError).code
    }
    return expect.fail('nothing was refused')
  }

  test.each([
    { temperature: -1 },
    { temperature: Number.NaN },
    { temperature: Number.POSITIVE_INFINITY },
    { temperature: '1' },
    { topK: -1 },
    { topK: 1.5 },
    { topP: 0 },
    { topP: 1.1 },
    { topP: Number.NaN },
    { seed: -1 },
    { seed: 0.5 },
    { seed: 2 ** 53 },
    { seed: 1n },
  ])('of %o', (options) => {
    expect(code(() => new Sampler(options as SamplerOptions))).toBe('ERR_ARGUMENT')
  })

  test.each([[[1, Number.NaN, 2]], [[Number.NaN]], [[1, Number.POSITIVE_INFINITY]], [[Number.NEGATIVE_INFINITY]], [[]]])(
    'of the logits %o',
    (logits) => {
      for (const options of [{}, { temperature: 1 }, { temperature: 1, topK: 1 }]) {
        expect(code(() => new Sampler(options).next(F.from(logits)))).toBe('ERR_ARGUMENT')
      }
    },
  )
})
