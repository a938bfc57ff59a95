// Shard plans: everything is held exactly once, cuts lie at whole units, shares come out as asked, remainders rotate, and what cannot be is refused.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  type LayerShard,
  type MatrixTypes,
  type ModelShape,
  type PlanOptions,
  plan,
  type ShardPlan,
  type Span,
} from '../../runtime/scheduler/plan.ts'

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
          const fixed = 4 * (17 * 256 + 128 * 32) // norms and rotations, which every rank needs
          const memory = parts.map((part) => fixed + part * 2 * total)
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

/** Types of a file like Q4_K_M: Q6_K for v and down of some layers. */
const mixed = (layers: number): MatrixTypes => ({
  layers: Array.from({ length: layers }, (_, layer) => {
    const wide = layer % 2 === 1 ? 'q6_k' : 'q4_k'
    return { q: 'q4_k', k: 'q4_k', v: wide, o: 'q4_k', gate: 'q4_k', up: 'q4_k', down: wide }
  }),
  embedding: 'q4_k',
  head: 'q6_k',
})

describe('quantised weights', () => {
  const shape: ModelShape = { ...small, headDim: 64, heads: 8, kvHeads: 4, hiddenSize: 512, intermediateSize: 1024, tieEmbeddings: false }

  it('are cut between blocks of all layers and of the tree, and everything is held exactly once', () => {
    fc.assert(
      fc.property(shareLists, fc.constantFrom(1, 32, 96), (shares, block) => {
        const made = plan(shape, { ranks: shares.length, shares, block, types: mixed(4) })
        const unit = block === 96 ? 768 : 256
        for (let layer = 0; layer < 4; layer++) {
          const shards = layerOf(made, layer)
          expectWhole(
            shards.map(({ heads }) => heads),
            8,
          )
          expectWhole(
            shards.map(({ mlp }) => mlp),
            1024,
          )
          for (const { heads, mlp } of shards) {
            if (heads.count > 0) expect((heads.start * 64) % unit).toBe(0)
            if (mlp.count > 0) expect(mlp.start % unit).toBe(0)
          }
        }
      }),
    )
  })

  it('of small blocks are cut finer than those of large ones, and rows anywhere', () => {
    const types = mixed(4)
    const q8 = {
      ...types,
      layers: types.layers.map(() => ({ q: 'q4_k', k: 'q4_k', v: 'q4_k', o: 'q8_0', gate: 'q4_k', up: 'q4_k', down: 'q4_0' }) as const),
    }
    const fine = plan(shape, { ranks: 4, types: q8 })
    expect(layerOf(fine, 0).map(({ heads, mlp }) => [heads.count, mlp.count])).toEqual(Array(4).fill([2, 256]))
    const coarse = plan(shape, { ranks: 4, types })
    for (const layer of [0, 1, 2, 3])
      expect(
        layerOf(coarse, layer)
          .map(({ heads }) => heads.count)
          .sort(),
      ).toEqual([0, 0, 4, 4])
    expect(layerOf(coarse, 0).map(({ mlp }) => mlp.count)).toEqual([256, 256, 256, 256])
    expect(coarse.ranks.map(({ layers }) => layers.reduce((n, { heads }) => n + heads.count, 0))).toEqual([8, 8, 8, 8])
  })

  it('weigh what their blocks do, tensor by tensor', () => {
    const made = plan(shape, { ranks: 1, types: mixed(4), capacity: 10 })
    const [q4, q6] = [144 / 256, 210 / 256]
    const even = 512 * (64 * (8 * 2 * q4 + 4 * 2 * q4) + 1024 * 3 * q4)
    const odd = 512 * (64 * (8 * 2 * q4 + 4 * (q4 + q6)) + 1024 * (2 * q4 + q6))
    const vocab = 512 * 256 * (q4 + q6)
    expect(made.weightBytes(0)).toBe(2 * (even + odd) + vocab)
    expect(made.bytes(0)).toBe(2 * (even + odd) + vocab + 4 * (9 * 512 + 10 * 64 + 10 * 4 * 2 * 4 * 64))
    const three = plan(shape, { ranks: 3, shares: [5, 2, 1], types: mixed(4) })
    expect(three.ranks.reduce((n, _, rank) => n + three.weightBytes(rank), 0)).toBe(made.weightBytes(0))
  })
})

describe('speeds', () => {
  const even = { bytesPerSecond: 1e9 }

  it('decide the shares where none are given, and tell the time of a token', () => {
    const made = plan(small, { ranks: 2, speeds: [{ bytesPerSecond: 3e9 }, even], elementBytes: 4 })
    expect(made.shares).toEqual([0.75, 0.25])
    const one = plan(small, { ranks: 1, speeds: [even], elementBytes: 4 })
    expect(one.tokenSeconds).toBeCloseTo(one.weightBytes(0) / 1e9, 12)
    expect(plan(small, { ranks: 2, speeds: [even, even], elementBytes: 4 }).tokenSeconds).toBeCloseTo(one.weightBytes(0) / 2e9, 12)
    const costly = plan(small, { ranks: 1, speeds: [{ ...even, overhead: 0.5 }], elementBytes: 4, collectiveSeconds: 1 })
    expect(costly.tokenSeconds).toBeCloseTo((one.tokenSeconds as number) + 9 * 0.5 + 1, 12)
    expect(plan(small, { ranks: 2 }).tokenSeconds).toBeNull()
  })

  it('split a component over fewer ranks where more would be slower, unless that is said or memory forbids it', () => {
    // The second rank would take half a second for its part of a layer, however small; the first has all of it done in a millisecond.
    const speeds = [even, { ...even, overhead: 0.5 }]
    const alone = plan(small, { ranks: 2, speeds })
    expect(alone.weightBytes(1)).toBe(0)
    const told = plan(small, { ranks: 2, speeds, most: { mlp: 2 } })
    expect(layerOf(told, 0).map(({ heads, mlp }) => [heads.count, mlp.count])).toEqual([
      [8, 256],
      [0, 256],
    ])
    const total = plan(small, { ranks: 1 }).bytes(0)
    const tight = plan(small, { ranks: 2, speeds, memory: [0.7 * total, total] })
    expect(tight.bytes(0)).toBeLessThanOrEqual(0.7 * total)
    expect(tight.weightBytes(1)).toBeGreaterThan(0)
  })

  it('leave no head to a rank that is too slow for one, and never make a token slower', () => {
    const slow = plan(small, { ranks: 2, speeds: [even, { bytesPerSecond: 5e7 }] })
    expect(layerOf(slow, 0).map(({ heads }) => heads.count)).toEqual([8, 0])
    const speed = fc.record({
      bytesPerSecond: fc.double({ min: 1e8, max: 1e10, noNaN: true }),
      overhead: fc.double({ min: 0, max: 1e-3, noNaN: true }),
    })
    fc.assert(
      fc.property(fc.array(speed, { minLength: 1, maxLength: 6 }), (speeds) => {
        const ranks = speeds.length
        const all = { attention: ranks, mlp: ranks, vocab: ranks }
        const most = plan(small, { ranks, speeds, most: all }).tokenSeconds as number
        expect(plan(small, { ranks, speeds }).tokenSeconds).toBeLessThanOrEqual(most * (1 + 1e-9))
      }),
    )
  })

  it('stand in the table', () => {
    const options = { ranks: 2, speeds: [even, even], devices: ['a', 'b'], collectiveSeconds: 0.002, elementBytes: 1000 }
    const lines = plan(small, options).explain().trimEnd().split('\n')
    expect(lines[0]).toMatch(/memory +a token +asked +achieved$/)
    expect(lines[1]).toMatch(/^0 +a .* [\d.]+ ms +50\.0 % +50\.0 %$/)
    expect(lines[3]).toMatch(/^A token: [\d.]+ ms expected, 2\.00 ms of it in collectives$/)
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
    [{}, { elementBytes: 0 }],
    [{}, { types: mixed(3) }],
    [{}, { speeds: [{ bytesPerSecond: 1 }] }],
    [{}, { speeds: [{ bytesPerSecond: 1 }, { bytesPerSecond: 0 }] }],
    [{}, { speeds: [{ bytesPerSecond: 1 }, { bytesPerSecond: 1, overhead: -1 }] }],
    [{}, { collectiveSeconds: Number.NaN }],
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
