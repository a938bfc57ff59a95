// Pairwise cases: few rows over several factors in which every pair of values of two factors occurs.
import type { Random } from './random.ts'

export type Factors = Readonly<Record<string, readonly unknown[]>>
export type Row<F extends Factors> = { [K in keyof F]: F[K][number] }

/** Candidates looked at for each row; more give fewer rows. */
const CANDIDATES = 12

export function pairwise<F extends Factors>(factors: F, random: Random): Row<F>[] {
  const names = Object.keys(factors)
  const uncovered = new Set<string>()
  const key = (i: number, vi: number, j: number, vj: number): string => `${i}:${vi},${j}:${vj}`
  const sizes = names.map((name) => (factors[name] as readonly unknown[]).length)
  for (let i = 0; i < names.length; i++)
    for (let j = i + 1; j < names.length; j++)
      for (let vi = 0; vi < sizes[i]!; vi++) for (let vj = 0; vj < sizes[j]!; vj++) uncovered.add(key(i, vi, j, vj))
  const pairsOf = (row: readonly number[]): string[] =>
    row.flatMap((vi, i) => row.slice(i + 1).map((vj, k) => key(i, vi, i + 1 + k, vj))).filter((pair) => uncovered.has(pair))

  const rows: Row<F>[] = []
  while (uncovered.size > 0) {
    const [wanted = ''] = uncovered
    const [[i, vi], [j, vj]] = wanted.split(',').map((part) => part.split(':').map(Number)) as [[number, number], [number, number]]
    let best: number[] = []
    let most = -1
    for (let c = 0; c < CANDIDATES; c++) {
      const row = sizes.map((size) => random.int(size))
      row[i] = vi
      row[j] = vj
      const gain = pairsOf(row).length
      if (gain > most) [best, most] = [row, gain]
    }
    for (const pair of pairsOf(best)) uncovered.delete(pair)
    rows.push(Object.fromEntries(names.map((name, at) => [name, factors[name]![best[at]!]])) as Row<F>)
  }
  return rows
}
