// Conformance of groups beside each other: ranks at work in halves, in a group that crosses those, and in the whole, all at once.
import { expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { fixedOrderBytes } from '../support/fixed-order.ts'
import type { Group } from './conformance.ts'

export function groupCases(group: Group): void {
  const P = group.ranks
  if (P === 1) {
    it.skip('two groups at once: a group of one cannot be halved', () => {})
    return
  }
  it('two groups at once: halves, odd and even ranks, and the whole', async () => {
    const everybody = Array.from({ length: P }, (_, rank) => rank)
    /** Groups with the number of sums each makes, so that some go on while others have ended. */
    const kinds = [
      { color: (rank: number) => Number(rank >= Math.ceil(P / 2)), rounds: (color: number) => 4 + 5 * color },
      { color: (rank: number) => rank % 2, rounds: (color: number) => 7 - 4 * color },
      { color: () => 0, rounds: () => 5 },
    ]
    const values = kinds.map(() =>
      everybody.map(() => Array.from({ length: 9 }, (_, i) => Float32Array.from({ length: 1 + 30 * i }, () => group.random.normal()))),
    )
    const results = await group.run(async ({ comm, device, rank }) => {
      const groups = []
      for (const { color } of kinds) groups.push((await comm.split({ color: color(rank), key: -rank }))!)
      const work = groups.map(async (own, k) => {
        const { color, rounds } = kinds[k]!
        const found: { rank: number; bytes: Uint8Array; ranks: number[] }[] = []
        for (let round = 0; round < rounds(color(rank)); round++) {
          using x = Tensor.from(values[k]![rank]![round]!, { device })
          using y = await own.allReduce(x)
          found.push({ rank: own.rank, bytes: await y.bytes(), ranks: await own.host.allGather(rank) })
        }
        return found
      })
      const all = await Promise.all(work)
      for (const own of groups) own.destroy()
      return all
    })
    for (const [k, { color, rounds }] of kinds.entries()) {
      for (const rank of everybody) {
        const ranks = everybody.filter((other) => color(other) === color(rank)).reverse() // by their keys
        const found = results[rank]![k]!
        expect(found.length).toBe(rounds(color(rank)))
        for (const [round, one] of found.entries()) {
          const what = `rank ${rank}, group of ${ranks}, sum ${round}`
          expect([one.rank, ...one.ranks], what).toEqual([ranks.indexOf(rank), ...ranks])
          const operands = ranks.map((other) => values[k]![other]![round]!)
          const place = ranks.map((other) => group.place[other]!)
          const wanted = fixedOrderBytes(operands, place, 'sum', 'float32')
          expect(Buffer.compare(one.bytes, wanted), `${what}: bits differ from the fixed order`).toBe(0)
        }
      }
    }
  })
}
