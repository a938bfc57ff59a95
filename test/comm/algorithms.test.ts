// The declared algorithms and the choice among them: pure, alike for every rank's view, and right about what they cost.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ALGORITHMS, type Algorithm, chooseAlgorithm, type ReductionCall, STEP_BYTES, wireBytes } from '../../runtime/comm/algorithms.ts'

const call = (ranksPerDevice: number[], count: number, more: Partial<ReductionCall> = {}): ReductionCall => ({
  collective: 'allReduce',
  count,
  dtype: 'float32',
  pieces: count,
  ranksPerDevice,
  ...more,
})

const named = (name: string): Algorithm => ALGORITHMS.find((algorithm) => algorithm.name === name) as Algorithm

describe('the choice', () => {
  it('stays on the device where there is one', () => {
    expect(chooseAlgorithm(call([8], 1 << 24))).toMatchObject({ algorithm: 'on-device' })
  })

  it('is one-shot for two devices, whatever the size: two-shot moves as much, in two steps', () => {
    for (const count of [1, 1000, 1 << 22]) expect(chooseAlgorithm(call([2, 2], count)).algorithm).toBe('one-shot')
  })

  it('turns to two-shot for four devices where the bytes saved outweigh a step', () => {
    expect(chooseAlgorithm(call([1, 1, 1, 1], 1000)).algorithm).toBe('one-shot')
    expect(chooseAlgorithm(call([1, 1, 1, 1], 1 << 20)).algorithm).toBe('two-shot')
    const [one, two] = [named('one-shot').cost(call([1, 1, 1, 1], 1 << 20)), named('two-shot').cost(call([1, 1, 1, 1], 1 << 20))]
    expect(one.bytesToDevice - two.bytesToDevice).toBeGreaterThan(STEP_BYTES)
  })

  it('does not cut rows that are fewer than the devices', () => {
    const rows = { collective: 'allReduceResidualBiasRMSNorm', pieces: 2 } as const
    expect(chooseAlgorithm(call([1, 1, 1], 1 << 24, rows)).algorithm).toBe('one-shot')
    expect(named('two-shot').refuses(call([1, 1, 1], 1 << 24, rows))).toContain('2 pieces')
  })

  it('is the same for every rank, gives a reason, and never picks what refuses', () => {
    const calls = fc.record({
      collective: fc.constantFrom('allReduce' as const, 'allReduceResidualBiasRMSNorm' as const),
      count: fc.integer({ min: 1, max: 1 << 26 }),
      dtype: fc.constantFrom('float32' as const, 'bfloat16' as const, 'int32' as const),
      pieces: fc.integer({ min: 1, max: 4096 }),
      ranksPerDevice: fc.array(fc.integer({ min: 1, max: 8 }), { minLength: 1, maxLength: 8 }),
    })
    fc.assert(
      fc.property(calls, (given) => {
        const views = Array.from({ length: 8 }, () => chooseAlgorithm(structuredClone(given))) // every rank's own view
        for (const view of views) expect(view).toEqual(views[0])
        const [choice] = views
        expect(named(choice?.algorithm as string).refuses(given)).toBeNull()
        expect(choice?.reason.length).toBeGreaterThan(10)
      }),
    )
  })
})

describe('the costs', () => {
  it('one-shot: a partial out, the others in; 16-bit operands widen only where ranks were added before', () => {
    expect(named('one-shot').cost(call([1, 1, 1], 1000, { dtype: 'bfloat16' }))).toEqual({
      steps: 1,
      bytesToHost: 2000,
      bytesToDevice: 4000,
    })
    expect(wireBytes(call([2, 1], 1000, { dtype: 'bfloat16' }))).toBe(4000)
  })

  it('two-shot: 2 S (D - 1) / D into a device', () => {
    expect(named('two-shot').cost(call([1, 1, 1, 1], 4000))).toEqual({ steps: 2, bytesToHost: 20_000, bytesToDevice: 24_000 })
  })
})
