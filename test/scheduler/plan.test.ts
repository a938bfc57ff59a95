// Shard plans: everything is held exactly once, cuts lie at whole units, shares come out as asked, remainders rotate, and what cannot be is refused.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type LayerShard, type ModelShape, type PlanOptions, plan, type ShardPlan, type Span } from '../../runtime/scheduler/plan.ts'

/** The bundled model. */
const small: ModelShape = {
  layers: 4,
  hiddenSize: 256,
  heads: 8,
  kvHeads: 4,
  headDim: 32,
  intermediateSize: 512,
  vocabSize: 256,
  tieEmbeddings: true,
}

const smollm: ModelShape = {
  layers: 30,
  hiddenSize: 576,
  heads: 9,
  kvHeads: 3,
  headDim: 64,
  intermediateSize: 1536,
  vocabSize: 49152,
  tieEmbeddings: true,
}

const shapes = fc
  .record({
    layers: fc.integer({ min: 1, max: 12 }),
    hiddenSize: fc.constant(64),
    group: fc.integer({ min: 1, max: 8 }),
    kvHeads: fc.integer({ min: 1, max: 16 }),
    headDim: fc.constantFrom(16, 32, 64, 80),
    intermediateSize: fc.integer({ min: 1, max: 3000 }),
    vocabSize: fc.integer({ min: 1, max: 5000 }),
    tieEmbeddings: fc.boolean(),
  })
  .map(({ group, ...rest }): ModelShape => ({ ...rest, heads: group * rest.kvHeads }))

const share = fc.oneof({ weight: 1, arbitrary: fc.constant(0) }, { weight: 4, arbitrary: fc.double({ min: 0.001, max: 100, noNaN: true }) })
const shareLists = fc.array(share, { minLength: 1, maxLength: 64 }).filter((list) => list.some((value) => value > 0))
const blocks = fc.constantFrom(1, 4, 32, 256)

/** Spans follow one another from 0 to `total`; empty ones may lie anywhere. */
function expectWhole(spans: readonly Span[], total: number): void {
  let next = 0
  for (const { start, count } of spans) {
    expect(count).toBeGreaterThanOrEqual(0)
    if (count === 0) continue
    expect(start).toBe(next)
    next += count
  }
  expect(next).toBe(total)
}

function layerOf({ ranks }: ShardPlan, layer: number): LayerShard[] {
  return ranks.map(({ layers }) => layers[layer] as LayerShard)
}

describe('uneven plans', () => {
  it('hold every head, column and row exactly once in every layer, at whole units', () => {
    fc.assert(
      fc.property(shapes, shareLists, blocks, (shape, shares, block) => {
        const made = plan(shape, { ranks: shares.length, shares, block })
        const { heads, kvHeads, headDim, intermediateSize, vocabSize } = shape
        expectWhole(
          made.ranks.map(({ vocab }) => vocab),
          vocabSize,
        )
        for (let layer = 0; layer < shape.layers; layer++) {
          const shards = layerOf(made, layer)
          expectWhole(
            shards.map((shard) => shard.heads),
            heads,
          )
          expectWhole(
            shards.map((shard) => shard.mlp),
            intermediateSize,
          )
          for (const { heads: own, kvHeads: kv, mlp } of shards) {
            if (own.count > 0) {
              expect(kv.start).toBe(Math.floor((own.start * kvHeads) / heads))
              expect(kv.start + kv.count).toBe(Math.ceil(((own.start + own.count) * kvHeads) / heads))
              expect(own.count % kv.count, 'as many heads for each kv head').toBe(0)
              expect((own.start * headDim) % block).toBe(0)
              if (own.start + own.count !== heads) expect((own.count * headDim) % block).toBe(0)
            } else expect(kv.count).toBe(0)
            expect(mlp.count === 0 || mlp.start % block === 0).toBe(true)
            if (mlp.start + mlp.count !== intermediateSize) expect(mlp.count % block).toBe(0)
          }
        }
      }),
    )
  })

  it('give each rank its share, to less than one unit', () => {
    fc.assert(
      fc.property(shapes, shareLists, (shape, given) => {
        const shares = given.map((value, rank) => value + (rank === 0 && value === given[1] ? 0.5 : 0)) // not all alike
        const made = plan(shape, { ranks: shares.length, shares })
        const sum = shares.reduce((a, b) => a + b, 0)
        shares.forEach((value, rank) => {
          const { layers, vocab } = made.ranks[rank] as ShardPlan['ranks'][number]
          const part = value / sum
          const near = (count: number, total: number, unit: number): void =>
            expect(Math.abs(count - part * total)).toBeLessThan(2 * unit - (total % unit === 0 ? unit - 1e-6 : 0))
          near(vocab.count, shape.vocabSize, 1)
          if (new Set(shares.filter((s) => s > 0)).size === 1) return // an even split may store kv heads twice
          for (const { kvHeads, mlp } of layers) {
            near(kvHeads.count, shape.kvHeads, 1)
            near(mlp.count, shape.intermediateSize, 4)
            if (value === 0) expect(kvHeads.count + mlp.count).toBe(0)
          }
        })
      }),
    )
  })

  it('rotate what does not divide: over all layers, ranks with equal shares hold the same to one unit', () => {
    fc.assert(
      fc.property(shapes, fc.integer({ min: 2, max: 64 }), (shape, ranks) => {
        const made = plan(shape, { ranks })
        const totals = made.ranks.map(({ layers }) => layers.reduce((n, { kvHeads }) => n + kvHeads.count, 0))
        expect(Math.max(...totals) - Math.min(...totals)).toBeLessThanOrEqual(2)
      }),
    )
    const held = plan(smollm, { ranks: 2 }).ranks.map(({ layers }) => layers.map(({ kvHeads }) => kvHeads.count))
    expect(held[0]?.filter((count) => count === 2)).toHaveLength(15)
    expect(held[1]?.filter((count) => count === 2)).toHaveLength(15)
  })

  it('that divide are even splits, as ever', () => {
    for (const ranks of [1, 2, 4, 8]) {
      for (const { layers, vocab } of plan(small, { ranks, shares: Array(ranks).fill(0.1) }).ranks) {
        expect(new Set(layers.map((layer) => JSON.stringify(layer))).size).toBe(1)
        expect(vocab.count).toBe(256 / ranks)
      }
      expect(layerOf(plan(small, { ranks }), 0)).toEqual(
        Array.from({ length: ranks }, (_, rank) => ({
          heads: { start: (rank * 8) / ranks, count: 8 / ranks },
          kvHeads: { start: Math.floor((rank * 4) / ranks), count: Math.max(1, 4 / ranks) },
          mlp: { start: (rank * 512) / ranks, count: 512 / ranks },
        })),
      )
    }
  })

  it('give ranks without a share nothing, and the others what they had without them', () => {
    const [first, second, third] = plan(small, { ranks: 3, shares: [1, 0, 1] }).ranks
    const even = plan(small, { ranks: 2 }).ranks
    expect([first, third]).toEqual(even)
    for (const { heads, kvHeads, mlp } of second?.layers ?? []) expect([heads.count, kvHeads.count, mlp.count]).toEqual([0, 0, 0])
    expect(second?.vocab.count).toBe(0)
  })

  it('split a component over fewer ranks where told so: those with the largest shares', () => {
    const made = plan(small, { ranks: 4, shares: [1, 3, 2, 3], most: { attention: 2, vocab: 1 } })
    for (const layer of [0, 1, 2, 3]) expect(layerOf(made, layer).map(({ heads }) => heads.count)).toEqual([0, 4, 0, 4])
    expect(made.ranks.map(({ vocab }) => vocab.count)).toEqual([0, 256, 0, 0])
    expect(layerOf(made, 0).every(({ mlp }) => mlp.count > 0)).toBe(true)
  })
})

describe('memory', () => {
  const total = plan(small, { ranks: 1, capacity: 128 }).bytes(0)

  it('decides the shares, or lowers them, and is never exceeded', () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 1, maxLength: 8 }),
        fc.option(fc.array(fc.double({ min: 0.01, max: 1, noNaN: true }), { minLength: 8, maxLength: 8 }), { nil: undefined }),
        (parts, shares) => {
          const norms = 17 * 256 * 4 // every rank needs them
          const memory = parts.map((part) => norms + part * 2 * total)
          const options: PlanOptions = { ranks: parts.length, memory, shares: shares?.slice(0, parts.length), capacity: 128 }
          try {
            const made = plan(smallLayers, options)
            memory.forEach((bytes, rank) => {
              expect(made.bytes(rank)).toBeLessThanOrEqual(bytes)
            })
          } catch (error) {
            expect(error).toMatchObject({ code: 'ERR_OUT_OF_MEMORY' })
            // Units are coarse: with a quarter more than needed on ranks with room for some of each kind, all fits.
            const roomy = parts.reduce((n, part) => n + Math.max(0, part - 0.15), 0)
            expect(roomy).toBeLessThan(1.25)
          }
        },
      ),
    )
  })

  const smallLayers: ModelShape = { ...small, layers: 8 }

  it('of unlike ranks gives unlike shares', () => {
    const made = plan(small, { ranks: 3, memory: [8 * total, 4 * total, 4 * total] })
    expect(made.ranks.map(({ vocab }) => vocab.count)).toEqual([128, 64, 64])
    expect(layerOf(made, 0).map(({ mlp }) => mlp.count)).toEqual([256, 128, 128])
  })

  it('that is too small passes the rest of a share on', () => {
    const made = plan(small, { ranks: 2, shares: [9, 1], memory: [total / 2, total] })
    expect(made.bytes(0)).toBeLessThanOrEqual(total / 2)
    expect(made.bytes(0)).toBeGreaterThan(total / 4)
    expect(made.shares[0]).toBeCloseTo(0.9)
  })

  it('that does not suffice is refused, with figures', () => {
    expect(() => plan(small, { ranks: 2, memory: [total / 4, total / 4] })).toThrow(expect.objectContaining({ code: 'ERR_OUT_OF_MEMORY' }))
    expect(() => plan(small, { ranks: 2, memory: [0, 0] })).toThrow(expect.objectContaining({ code: 'ERR_OUT_OF_MEMORY' }))
    expect(() => plan(small, { ranks: 2, shares: [1, 0], memory: [total / 2, total] })).toThrow(/do not fit/)
  })
})

it('explain prints what each rank holds, and the share asked for beside the share achieved', () => {
  const table = plan(small, { ranks: 3, shares: [0.7, 0.2, 0.1], devices: ['gpu', 'gpu', 'cpu'], capacity: 128 }).explain()
  const [head, ...lines] = table.trimEnd().split('\n')
  expect(head?.split(/ {2,}/)).toEqual(['rank', 'device', 'heads', 'kv heads', 'mlp columns', 'vocabulary', 'memory', 'asked', 'achieved'])
  expect(lines).toHaveLength(3)
  expect(lines[0]).toMatch(/^0 +gpu .* 0-178 .* 70\.0 %/)
  expect(lines[2]).toMatch(/^2 +cpu .* 10\.0 %/)
  const achieved = lines.map((line) => Number(/([\d.]+) %$/.exec(line)?.[1]))
  expect(achieved.reduce((a, b) => a + b, 0)).toBeCloseTo(100, 0)
  expect(Math.abs((achieved[0] as number) - 70)).toBeLessThan(5)
  expect(plan(small, { ranks: 2 }).explain()).not.toContain('device')
})

it('refuses what makes no sense', () => {
  const refused: [Partial<ModelShape>, Partial<PlanOptions>][] = [
    [{}, { ranks: 0 }],
    [{}, { ranks: 65 }],
    [{}, { shares: [1, 1, 1] }],
    [{}, { shares: [1, -1] }],
    [{}, { shares: [1, Number.NaN] }],
    [{}, { shares: [1, Number.POSITIVE_INFINITY] }],
    [{}, { shares: [0, 0] }],
    [{}, { shares: 1 as unknown as number[] }],
    [{}, { memory: [1e9] }],
    [{}, { memory: [1e9, -1] }],
    [{}, { block: 0 }],
    [{}, { most: { attention: 0 } }],
    [{}, { devices: ['one'] }],
    [{ kvHeads: 3 }, {}],
    [{ layers: 0 }, {}],
    [{ headDim: 1.5 }, {}],
  ]
  for (const [shape, options] of refused) {
    expect(() => plan({ ...small, ...shape }, { ranks: 2, ...options }), JSON.stringify([shape, options])).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT' }),
    )
  }
})
