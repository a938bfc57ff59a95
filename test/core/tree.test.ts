// The tree of sums: every cut of the blocks joins to the same expression, the one of the whole.
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { mergesOf, NO_NODE, nodesOf, type Span, slotsOf, subtreesOf } from '../../runtime/core/tree.ts'

/** What a node's sum is, as text: the tree written down. */
function expression(start: number, width: number, blocks: number): string {
  if (width === 1) return String(start)
  const half = width / 2
  const left = expression(start, half, blocks)
  return start + half < blocks ? `(${left}+${expression(start + half, half, blocks)})` : left
}

function whole(blocks: number): string {
  return expression(0, 2 ** Math.ceil(Math.log2(blocks)), blocks)
}

/** Joins the nodes of all ranks as the schedule says. */
function joined(spans: readonly Span[]): string {
  const blocks = spans.reduce((n, { count }) => n + count, 0)
  const slots = slotsOf(spans)
  return stacked(spans, slots, mergesOf(spans, slots), blocks)
}

function stacked(spans: readonly Span[], slots: number, merges: readonly number[], blocks: number): string {
  const stack: string[] = []
  merges.forEach((joins, slot) => {
    if (joins === NO_NODE) return
    const node = nodesOf(spans[Math.floor(slot / slots)] as Span)[slot % slots]
    let sum = expression(node?.start as number, 2 ** (node?.level as number), blocks)
    for (let i = 0; i < joins; i++) sum = `(${stack.pop()}+${sum})`
    stack.push(sum)
  })
  expect(stack).toHaveLength(1)
  return stack[0] as string
}

function spansOf(counts: readonly number[]): Span[] {
  let start = 0
  return counts.map((count) => {
    start += count
    return { start: start - count, count }
  })
}

describe('nodesOf', () => {
  it.each([
    [{ start: 0, count: 8 }, [[0, 3]]],
    [
      { start: 1, count: 7 },
      [
        [1, 0],
        [2, 1],
        [4, 2],
      ],
    ],
    [
      { start: 0, count: 7 },
      [
        [0, 2],
        [4, 1],
        [6, 0],
      ],
    ],
    [
      { start: 3, count: 2 },
      [
        [3, 0],
        [4, 0],
      ],
    ],
    [{ start: 5, count: 0 }, []],
  ] as [Span, number[][]][])('cuts %j into its largest whole subtrees', (span, nodes) => {
    expect(nodesOf(span).map(({ start, level }) => [start, level])).toEqual(nodes)
  })
})

describe('subtreesOf', () => {
  it('any neighbours of any cut: the nodes of their blocks, each the expression of its own', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(9), { minLength: 1, maxLength: 9 }), fc.nat(8), fc.nat(8), (counts, a, b) => {
        const [from, to] = [Math.min(a, b), Math.max(a, b) + 1].map((end) => Math.min(end, counts.length)) as [number, number]
        fc.pre(from < to)
        const all = spansOf(counts)
        const [blocks, spans, slots] = [counts.reduce((x, y) => x + y, 0), all.slice(from, to), slotsOf(all)]
        const subtrees = subtreesOf(spans, slots)
        const count = spans.reduce((x, span) => x + span.count, 0)
        expect(subtrees.map(({ node }) => node)).toEqual(nodesOf({ start: (spans[0] as Span).start, count }))
        for (const { node, merges } of subtrees)
          expect(stacked(spans, slots, merges, blocks)).toBe(expression(node.start, 2 ** node.level, blocks))
      }),
      { numRuns: 1000 },
    )
  })
})

describe('mergesOf', () => {
  it.each([1, 2, 4, 8])('an even cut of 16 blocks over %i ranks is one node a rank', (ranks) => {
    const spans = spansOf(Array.from({ length: ranks }, () => 16 / ranks))
    expect(slotsOf(spans)).toBe(1)
    expect(joined(spans)).toBe(whole(16))
  })

  it('any cut of any number of blocks gives the expression of the whole', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(9), { minLength: 1, maxLength: 9 }), (counts) => {
        const spans = spansOf(counts)
        const blocks = counts.reduce((a, b) => a + b, 0)
        fc.pre(blocks > 0)
        expect(joined(spans)).toBe(whole(blocks))
      }),
      { numRuns: 2000 },
    )
  })

  it('refuses spans that leave a gap', () => {
    expect(() =>
      mergesOf([
        { start: 0, count: 2 },
        { start: 3, count: 1 },
      ]),
    ).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
  })
})
