// The table that a shard plan prints.
import type { Span } from '../core/tree.ts'
import type { LayerShard, RankShard } from './plan.ts'

export interface PlanRow {
  device: string
  shard: RankShard
  bytes: number
  /** That one token keeps the rank busy, where that is known. */
  seconds: number | undefined
  /** Parts of 1. */
  asked: number
  achieved: number
}

/** One line a rank, columns aligned, and behind them the seconds of a token where they are known, of which `collectives` in collectives. */
export function planTable(rows: readonly PlanRow[], token: number | null, collectives: number): string {
  const named = rows.some(({ device }) => device !== '')
  const timed = rows.some(({ seconds }) => seconds !== undefined)
  const only = (shown: boolean, cell: string): string[] => (shown ? [cell] : [])
  const lines = rows.map(({ device, shard, bytes, seconds = 0, asked, achieved }, rank) => [
    String(rank),
    ...only(named, device),
    ...shardCells(shard),
    megabytes(bytes),
    ...only(timed, milliseconds(seconds)),
    percent(asked),
    percent(achieved),
  ])
  const held = ['heads', 'kv heads', 'mlp columns', 'vocabulary', 'memory']
  const head = ['rank', ...only(named, 'device'), ...held, ...only(timed, 'a token'), 'asked', 'achieved']
  const table = columns([head, ...lines])
  if (token === null) return table
  return `${table}A token: ${milliseconds(token)} expected, ${milliseconds(collectives)} of it in collectives\n`
}

/** A rank's heads, kv heads, MLP columns and vocabulary rows, as text. */
export function shardCells({ layers, vocab }: RankShard): string[] {
  const across = (key: keyof LayerShard): string => overLayers(layers.map((layer) => layer[key]))
  return [across('heads'), across('kvHeads'), across('mlp'), span(vocab)]
}

/** Cells under one another, columns as wide as their widest cell. */
export function columns(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => (row[i] as string).length)))
  return rows
    .map(
      (row) =>
        `${row
          .map((cell, i) => cell.padEnd(widths[i] as number))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('')
}

export function megabytes(bytes: number): string {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`
}

/** What every layer has, or where layers differ, how many on average. */
function overLayers(spans: readonly Span[]): string {
  const first = spans[0] as Span
  if (spans.every(({ start, count }) => count === first.count && (count === 0 || start === first.start))) return span(first)
  const mean = spans.reduce((n, { count }) => n + count, 0) / spans.length
  return `${mean < 100 ? mean.toFixed(1) : mean.toFixed(0)} a layer`
}

function span({ start, count }: Span): string {
  return count === 0 ? 'none' : count === 1 ? String(start) : `${start}-${start + count - 1}`
}

function milliseconds(seconds: number): string {
  const ms = 1000 * seconds
  return `${ms.toFixed(ms < 10 ? 2 : ms < 100 ? 1 : 0)} ms`
}

function percent(part: number): string {
  return `${(100 * part).toFixed(1)} %`
}
