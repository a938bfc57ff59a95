// Small worked examples with the numbers written out: uneven parts, pitched gather, the fused norm, ownership, expert parallelism.
import { afterAll, describe, expect, it } from 'vitest'
import type { Communicator } from '../../runtime/comm/communicator.ts'
import { innerSize, ownedRows } from '../../runtime/comm/ownership.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'

const [a, b] = [await testDevice(), await testDevice()]
afterAll(() => {
  a.dispose()
  b.dispose()
})

const numbers = async (x: Tensor): Promise<number[]> => [...(await x.data())].map(Number)
const places = [
  { where: 'one device', devices: [a] },
  { where: 'two devices', devices: [a, b] },
]

for (const { where, devices } of places) {
  describe(`on ${where}`, () => {
    const run = <T>(ranks: number, main: (context: RankContext) => Promise<T>): Promise<T[]> => launch({ ranks, devices }, main)

    it('reduceScatterV of [1, 2, 3, 4] by [3, 1]', async () => {
      const found = await run(2, async ({ comm, device }) => {
        using x = Tensor.from([1, 2, 3, 4], { device })
        using y = await comm.reduceScatterV(x, { sizes: [3, 1] })
        expect(await numbers(x)).toEqual([1, 2, 3, 4])
        return numbers(y)
      })
      expect(found).toEqual([[2, 4, 6], [8]])
    })

    it('reduceScatter and reduceScatterV along the middle and the last of three dimensions', async () => {
      const found = await run(2, async ({ comm, device }) => {
        using x = Tensor.from(
          Array.from({ length: 8 }, (_, i) => i),
          { shape: [1, 2, 4], device },
        )
        using last = await comm.reduceScatter(x, { dim: 2 })
        using uneven = await comm.reduceScatterV(x, { dim: 2, sizes: [3, 1] })
        return [last.shape, await numbers(last), uneven.shape, await numbers(uneven)]
      })
      expect(found[0]).toEqual([
        [1, 2, 2],
        [0, 2, 8, 10],
        [1, 2, 3],
        [0, 2, 4, 8, 10, 12],
      ])
      expect(found[1]).toEqual([
        [1, 2, 2],
        [4, 6, 12, 14],
        [1, 2, 1],
        [6, 14],
      ])
    })

    it('allGather2D: rows of two ranks side by side', async () => {
      const own = [
        [1, 2, 0, 0, 5, 6, 0, 0],
        [0, 0, 3, 4, 0, 0, 7, 8],
      ]
      const found = await run(2, async ({ comm, device, rank }) => {
        using x = Tensor.from(own[rank]!, { device })
        await comm.allGather2D(x, { width: 2, height: 2, pitch: 4, stride: 2 })
        return numbers(x)
      })
      expect(found).toEqual(Array(2).fill([1, 2, 3, 4, 5, 6, 7, 8]))
    })

    it('the fused norm, plain and zero-centred, alone and between groups', async () => {
      const hidden = [
        [1, 2, 3, 4],
        [0.5, -1, 0, 2],
      ]
      const wanted = [
        [0.573943829, 0.232310597, 1.257210292, -1.749162145],
        [1.147887658, 0.696931792, 1.885815438, 0],
      ]
      await run(2, async ({ comm, device, rank }) => {
        using weight = Tensor.from([1, 0.5, 2, -1], { device })
        using bias = Tensor.from([0.1, 0.2, 0.3, 0.4], { device })
        for (const zeroCentered of [false, true]) {
          for (const between of [false, true]) {
            using x = Tensor.from([hidden[rank]!], { device })
            using residual = Tensor.from([[0.5, 0.5, -1, 0]], { device })
            const rest = { residual, weight, bias, eps: 1e-5, zeroCentered }
            const y = between
              ? await comm.allReduceResidualBiasRMSNormEx({ hidden: x, group0: null, group1: null, localTokenNums: [1], ...rest })
              : await comm.allReduceResidualBiasRMSNorm({ x, ...rest })
            for (const [i, value] of (await numbers(y)).entries()) expect(value).toBeCloseTo(wanted[Number(zeroCentered)]![i]!, 5)
            const owned = !between || rank === 0
            for (const [i, value] of (await numbers(residual)).entries()) {
              expect(value).toBeCloseTo(owned ? [2.1, 1.7, 2.3, 6.4][i]! : [0.5, 0.5, -1, 0][i]!, 5)
            }
            if (!between) y.dispose()
          }
        }
      })
    })

    it('allGatherV of [1, 0], [3, 1], [2, 2] and [0, 0] rows, given and found out', async () => {
      for (const sizes of [
        [1, 0],
        [3, 1],
        [2, 2],
        [0, 0],
      ]) {
        await run(2, async ({ comm, device, rank }) => {
          using x = Tensor.full([sizes[rank]!, 3], rank + 1, { device })
          for (const given of [sizes, undefined]) {
            using y = await comm.allGatherV(x, { sizes: given })
            expect(y.shape).toEqual([sizes[0]! + sizes[1]!, 3])
            expect(await numbers(y)).toEqual([...Array(3 * sizes[0]!).fill(1), ...Array(3 * sizes[1]!).fill(2)])
          }
        })
      }
    })

    for (const sizes of [
      [2, 1],
      [0, 3],
      [2, 2, 1, 1, 3, 3],
    ]) {
      it(`expert dispatch and combine of ${sizes} tokens`, async () => {
        const total = sizes.reduce((x, y) => x + y, 0)
        const everyones = (of: (rank: number) => number, width: number): number[] =>
          sizes.flatMap((rows, rank) => Array(rows * width).fill(of(rank)))
        await run(sizes.length, async (context) => {
          const { device, rank } = context
          const comm = (await context.comm.split({ color: 0, expertParallel: true })) as Communicator
          const rows = sizes[rank]!
          using hidden = Tensor.full([rows, 8], rank + 1, { device })
          using logits = Tensor.full([rows, 6], 10 * (rank + 1), { device })
          using weights = Tensor.full([rows, 2], 100 * (rank + 1), { device })
          using ids = Tensor.full([rows, 2], rank, { dtype: 'int32', device })
          using padding = Tensor.full([rows], Number(rank !== 0), { dtype: 'uint8', device })
          for (const given of [sizes, undefined]) {
            const one = await comm.dispatchRouterLogits(hidden, logits, { sizes: given, extra: [padding] })
            expect(one.sizes).toEqual(sizes)
            expect(await numbers(one.hidden)).toEqual(everyones((r) => r + 1, 8))
            expect(await numbers(one.logits)).toEqual(everyones((r) => 10 * (r + 1), 6))
            expect(await numbers(one.extra[0]!)).toEqual(everyones((r) => Number(r !== 0), 1))
            const two = await comm.dispatch(hidden, weights, ids, { sizes: given })
            expect(await numbers(two.weights)).toEqual(everyones((r) => 100 * (r + 1), 2))
            expect(await numbers(two.ids)).toEqual(everyones((r) => r, 2))
            for (const tensor of [one.hidden, one.logits, ...one.extra, two.hidden, two.weights, two.ids]) tensor.dispose()
          }
          const values = Array.from({ length: total * 8 }, (_, i) => Math.floor(i / 8) + 1000 * (rank + 1))
          using outputs = Tensor.from(values, { shape: [total, 8], device })
          using combined = await comm.combine(outputs, { sizes })
          const first = sizes.slice(0, rank).reduce((x, y) => x + y, 0)
          const added = sizes.reduce((sum, _, r) => sum + 1000 * (r + 1), 0)
          expect(combined.shape).toEqual([rows, 8])
          expect(await numbers(combined)).toEqual(
            Array.from({ length: rows * 8 }, (_, i) => (first + Math.floor(i / 8)) * sizes.length + added),
          )
          await expect(comm.combine(outputs)).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
        })
      })
    }

    it('without expert parallelism, dispatch and combine give what they got', async () => {
      await run(2, async ({ comm, device }) => {
        using x = Tensor.full([3, 4], 5, { device })
        const { hidden, logits, extra, sizes } = await comm.dispatchRouterLogits(x, x, { extra: [x] })
        using y = await comm.combine(hidden)
        expect([hidden.shape, logits.shape, extra.length, sizes, await numbers(y)]).toEqual([[3, 4], [3, 4], 1, [3], Array(12).fill(5)])
        for (const tensor of [hidden, logits, ...extra]) tensor.dispose()
      })
    })
  })
}

describe('ownership', () => {
  const globalRows = (tokens: number[], inner: number): number[][] =>
    ownedRows(tokens, inner).map(({ offset, first, last }) => Array.from({ length: last - first }, (_, i) => offset + first + i))

  it('four ranks, two groups of two with 5 and 2 tokens', () => {
    expect(innerSize(4, 2, 4, [5, 2])).toBe(2)
    expect(ownedRows([5, 2], 2)).toEqual([
      { offset: 0, first: 0, last: 3 },
      { offset: 0, first: 3, last: 5 },
      { offset: 5, first: 0, last: 1 },
      { offset: 5, first: 1, last: 2 },
    ])
    expect(globalRows([5, 2], 2)).toEqual([[0, 1, 2], [3, 4], [5], [6]])
  })

  it('four ranks alone with 3, 0, 2 and 1 tokens', () => {
    expect(innerSize(4, 1, 4, [3, 0, 2, 1])).toBe(1)
    expect(ownedRows([3, 0, 2, 1], 1).map(({ offset }) => offset)).toEqual([0, 3, 3, 5])
    expect(globalRows([3, 0, 2, 1], 1)).toEqual([[0, 1, 2], [], [3, 4], [5]])
  })

  it('four ranks together with 5 tokens', () => {
    expect(ownedRows([5], 4).map(({ first, last }) => [first, last])).toEqual([
      [0, 2],
      [2, 4],
      [4, 5],
      [5, 5],
    ])
  })

  it('refuses groups that do not fit', () => {
    expect(() => innerSize(4, 2, 2, [1, 1])).toThrow('whole group of 4')
    expect(() => innerSize(4, 4, 3, [1])).toThrow('multiple')
    expect(() => innerSize(4, 2, 4, [1])).toThrow('Expected 2 numbers')
    expect(() => ownedRows([1, -1], 2)).toThrow('localTokenNums')
  })

  it('rows 0 to 6 after attention reach all; row 3 after the feed-forward goes from rank 1 to ranks 0 and 1', async () => {
    await launch({ ranks: 4, devices: [a, b] }, async ({ comm, device, rank }) => {
      const pair = await comm.split({ color: Math.floor(rank / 2) })
      using weight = Tensor.full([4], 1, { device })
      for (const [group0, group1] of [
        [pair, null],
        [null, pair],
      ] as const) {
        using hidden = Tensor.full([7, 4], 2 ** rank, { device })
        using residual = Tensor.full([rank < 2 ? 5 : 2, 4], 0, { device })
        await comm.allReduceResidualBiasRMSNormEx({ hidden, residual, weight, group0, group1, localTokenNums: [5, 2], eps: 0 })
        const rows = (await numbers(hidden)).filter((_, i) => i % 4 === 0)
        const mine = (row: number): boolean => group1 === null || row < 5 === rank < 2
        for (const [row, value] of rows.entries()) expect(value, `row ${row}`).toBeCloseTo(mine(row) ? 1 : 2 ** rank, 5)
        const stream = (await numbers(residual)).filter((_, i) => i % 4 === 0)
        const sum = group0 === null ? 15 : rank < 2 ? 3 : 12
        const owned = [[0, 1, 2], [3, 4], [0], [1]][rank]!
        expect(stream).toEqual(stream.map((_, row) => (owned.includes(row) ? sum : 0)))
      }
    })
  })
})
