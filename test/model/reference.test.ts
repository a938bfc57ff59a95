// Checks the float64 reference that other tests trust: against transformers' numbers, the example model's golden file and worked sums.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { Random } from '../support/random.ts'
import { decodeBF16, decodeF16, loadReference } from '../support/reference-llama.ts'
import * as ops from '../support/reference-ops.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const readJson = (path: string): unknown => JSON.parse(readFileSync(path, 'utf8'))

describe.each(['llama-gqa', 'llama-rope3-tied', 'llama-bias-headdim', 'qwen2', 'mistral-window'])('%s agrees with transformers', (name) => {
  interface Expected {
    promptIds: number[]
    lastLogits: number[]
    logitsAt0: number[]
    logitsAt17: number[]
    greedyIds: number[]
    greedyMargin: number[]
  }
  const dir = `${root}test/fixtures/tiny-models/${name}`
  const load = () => ({ model: loadReference(dir), expected: readJson(`${dir}/expected.json`) as Expected })

  // transformers rounds norms, softmax and rope angles to float32 even in a float64 run; the file's margins have five decimals.
  test('logits', () => {
    const { model, expected } = load()
    const logits = model.forward(expected.promptIds)
    expect(logits).toHaveLength(expected.promptIds.length)
    ops.expectClose(logits.at(-1)!, expected.lastLogits, { abs: 1e-5, what: 'last position' })
    ops.expectClose(logits[0]!, expected.logitsAt0, { abs: 1e-5, what: 'position 0' })
    ops.expectClose(logits[17]!, expected.logitsAt17, { abs: 1e-5, what: 'position 17' })
  })

  test('greedy tokens and margins', () => {
    const { model, expected } = load()
    expect(expected.greedyIds).toHaveLength(40)
    const { ids, margins } = model.greedy(expected.promptIds, 40)
    expect(ids).toEqual(expected.greedyIds)
    ops.expectClose(margins, expected.greedyMargin, { abs: 2e-5, what: 'margins' })
  })

  test('token by token equals one pass', () => {
    const { model, expected } = load()
    const state = model.start()
    const stepped = expected.promptIds.map((id) => state.step(id))
    expect(state.length).toBe(expected.promptIds.length)
    model.forward(expected.promptIds).forEach((row, position) => {
      ops.expectClose(stepped[position]!, row, { abs: 1e-11, what: `position ${position}` })
    })
  })
})

describe('the example model agrees with its golden file', () => {
  interface Golden {
    greedyTokens: number
    prompts: {
      ids: number[]
      firstPositionLogits: number[]
      lastPositionLogits: number[]
      greedy: number[]
      smallestMargin: number
      smallestMarginStep: number
    }[]
  }
  const dir = `${root}examples/models/tiny-shakespeare`

  test('logits and greedy tokens', () => {
    const golden = readJson(`${dir}/golden.json`) as Golden
    const model = loadReference(dir)
    expect(golden.greedyTokens).toBe(200)
    expect(golden.prompts).toHaveLength(2)
    for (const prompt of golden.prompts) {
      const logits = model.forward(prompt.ids)
      // The golden logits are rounded to float32.
      ops.expectClose(logits[0]!, prompt.firstPositionLogits, { abs: 1e-8, rel: 1e-7, what: 'first position' })
      ops.expectClose(logits.at(-1)!, prompt.lastPositionLogits, { abs: 1e-8, rel: 1e-7, what: 'last position' })
      const { ids, margins } = model.greedy(prompt.ids, golden.greedyTokens)
      expect(ids).toEqual(prompt.greedy)
      expect(Math.min(...margins)).toBeCloseTo(prompt.smallestMargin, 8)
      expect(margins.indexOf(Math.min(...margins))).toBe(prompt.smallestMarginStep)
    }
  })
})

describe('worked sums', () => {
  test('half and bfloat16 values', () => {
    expect([0x3c00, 0xc000, 0x7bff, 0x0001, 0x0400, 0x7c00].map(decodeF16)).toEqual([1, -2, 65504, 2 ** -24, 2 ** -14, Infinity])
    expect([0x3f80, 0xc000, 0x7f7f, 0x0001, 0x0080, 0xff80].map(decodeBF16)).toEqual([
      1,
      -2,
      255 * 2 ** 120,
      2 ** -133,
      2 ** -126,
      -Infinity,
    ])
    expect([decodeF16(0x7e00), decodeBF16(0x7fc0)]).toEqual([NaN, NaN])
  })

  test('matmul takes the weight as [n, k]', () => {
    expect([...ops.matmul([1, 2, 3, 4], [1, 0, 0, 1, 5, 6], { t: 2, k: 2, n: 3 }, [0, 0, 100])]).toEqual([1, 2, 117, 3, 4, 139])
    expect(() => ops.matmul([1, 2, 3], [1, 0, 0, 1], { t: 2, k: 2, n: 2 })).toThrow('x has 3 elements')
  })

  test('softmax, silu and norm', () => {
    ops.expectClose(ops.softmax([0, Math.log(3), 1000, 1000], { t: 2, n: 2 }), [0.25, 0.75, 0.5, 0.5], { abs: 1e-15 })
    ops.expectClose(ops.siluMul([0, Math.log(3), 5, 4], { t: 1, i: 2 }), [0, 3 * Math.log(3)], { abs: 1e-14 })
    ops.expectClose(ops.rmsNorm([3, 4], [1, 2], { t: 1, h: 2, eps: 12.5 }), [0.6, 1.6], { abs: 1e-15 })
    ops.expectClose(ops.rmsNorm([3, 4], [0, 1], { t: 1, h: 2, eps: 12.5, zeroCentered: true }), [0.6, 1.6], { abs: 1e-15 })
  })

  test('rope rotates i with i + half and leaves the rest', () => {
    const out = ops.rope([1, 2, 3, 4, 9], { t: 1, heads: 1, headDim: 5 }, [3], [Math.PI / 6, Math.PI / 3])
    ops.expectClose(out, [-3, -2, 1, -4, 9], { abs: 1e-14 })
  })

  test('attention: groups, window and start', () => {
    // Equal keys weigh the visible values equally; value row j is j in head 0 and 10 j in head 1.
    const k = new Float64Array(8)
    const v = [0, 0, 1, 10, 2, 20, 3, 30]
    const shape = { s: 4, heads: 4, kvHeads: 2, headDim: 1 }
    ops.expectClose(ops.attention(new Float64Array(4), k, v, { ...shape, t: 1 }), [1.5, 1.5, 15, 15], { abs: 1e-14 })
    ops.expectClose(ops.attention(new Float64Array(8), k, v, { ...shape, t: 2, window: 2 }), [1.5, 1.5, 15, 15, 2.5, 2.5, 25, 25], {
      abs: 1e-14,
    })
    ops.expectClose(ops.attention(new Float64Array(4), k, v, { ...shape, t: 1, start: 1 }), [0.5, 0.5, 5, 5], { abs: 1e-14 })
    ops.expectClose(ops.attention(new Float64Array(4), k, v, { ...shape, t: 1, window: 1 }), [3, 3, 30, 30], { abs: 0 })
    // Scores 0 and 2 * ln(3) / sqrt(4) give weights 1/4 and 3/4.
    const keys = [0, 0, 0, 0, Math.log(3), 0, 0, 0]
    const values = [0, 1, 2, 3, 4, 5, 6, 7]
    const out = ops.attention([2, 5, 6, 7], keys, values, { t: 1, s: 2, heads: 1, kvHeads: 1, headDim: 4 })
    ops.expectClose(out, [3, 4, 5, 6], { abs: 1e-14 })
  })

  test('embedding, argmax and topK', () => {
    expect([...ops.embedding([2, 0], [1, 2, 3, 4, 5, 6], { vocab: 3, h: 2 })]).toEqual([5, 6, 1, 2])
    expect(() => ops.embedding([3], [1, 2, 3], { vocab: 3, h: 1 })).toThrow('id 3')
    expect(ops.argmax([1, 7, 7, 3])).toBe(1)
    expect(ops.topK([1, 7, -2, 7, 3, 3], 4)).toEqual({ indices: [1, 3, 4, 5], values: [7, 7, 3, 3] })
    expect(() => ops.argmax([1, NaN])).toThrow('NaN')
  })

  test('allReduce', () => {
    const ranks = [
      [1, -2, 3],
      [4, 5, -6],
      [1, 0.5, 9],
    ]
    const reduced = (['sum', 'prod', 'min', 'max', 'avg'] as const).map((op) => [...ops.allReduce(ranks, op)])
    expect(reduced).toEqual([
      [6, 3.5, 6],
      [4, -5, -162],
      [1, -2, -6],
      [4, 5, 9],
      [2, 3.5 / 3, 2],
    ])
  })

  test('allReduce, residual, bias and norm in one', () => {
    const inputs = { ranks: [new Float32Array([1, 1, 2, 0]), [1, 0, 0, 3]], residual: [0, 1, 1, 1], bias: [1, 2], gamma: [1, -0.5] }
    const shape = { t: 2, h: 2, eps: 12.5 }
    const plain = ops.allReduceResidualBiasRmsNorm(inputs, shape)
    expect([...plain.residual]).toEqual([3, 4, 4, 6])
    ops.expectClose(plain.out, [0.6, -0.4, 4 / Math.sqrt(38.5), -3 / Math.sqrt(38.5)], { abs: 1e-15 })
    const centred = ops.allReduceResidualBiasRmsNorm({ ...inputs, bias: undefined }, { ...shape, zeroCentered: true })
    expect([...centred.residual]).toEqual([2, 2, 3, 4])
    ops.expectClose(centred.out.subarray(2), [1.2, 0.4], { abs: 1e-15 })
  })

  test('expectClose names the worst element and lets no NaN or infinity through', () => {
    ops.expectClose([1, 2.1, Infinity], [1, 2, Infinity], { rel: 0.06 })
    expect(() => ops.expectClose([1, 2.2, 3.5], [1, 2, 3], { abs: 0.1, what: 'x' })).toThrow(/^x: 2 of 3 .*\[2\]: got 3\.5, expected 3/)
    for (const [actual, expected] of [
      [NaN, 1],
      [1, NaN],
      [NaN, NaN],
      [Infinity, 1],
      [1, Infinity],
      [-Infinity, Infinity],
    ] as const) {
      expect(() => ops.expectClose([actual], [expected], { abs: 1e9, rel: 1e9 })).toThrow('[0]')
    }
    expect(() => ops.expectClose([1, 2], [1], { abs: 1 })).toThrow('2 elements, expected 1')
    expect([ops.maxAbsDiff([1, 2], [1, 2.5]), ops.maxRelDiff([1, 2], [1, 2.5]), ops.maxRelDiff([0, 1], [0, 0])]).toEqual([
      0.5,
      0.2,
      Infinity,
    ])
    expect([ops.maxAbsDiff([NaN, 1], [1, 1]), ops.maxRelDiff([NaN, 1], [1, 1]), ops.maxRelDiff([1e-9], [0], 1)]).toEqual([NaN, NaN, 1e-9])
  })

  test('random numbers repeat and have the right moments', () => {
    expect(new Random(7).floats(5)).toEqual(new Random(7).floats(5))
    expect(new Random(7).floats(5)).not.toEqual(new Random(8).floats(5))
    const random = new Random(1)
    const values = random.floats(100_000, 3)
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length
    const variance = values.reduce((sum, value) => sum + value * value, 0) / values.length
    expect(Math.abs(mean)).toBeLessThan(0.05)
    expect(Math.abs(variance - 9)).toBeLessThan(0.3)
    const counts = new Array<number>(6).fill(0)
    for (let i = 0; i < 60_000; i++) counts[random.int(6)]!++
    for (const count of counts) expect(Math.abs(count - 10_000)).toBeLessThan(500)
  })
})
