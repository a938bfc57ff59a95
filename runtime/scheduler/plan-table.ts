// The table that a shard plan prints.
import type { Span } from '../core/tree.ts'
import type { LayerShard, RankShard } from './plan.ts'

export interface PlanRow {
  device: string
  shard: RankShard
  bytes: number
  /** Parts of 1. */
  asked: number
  achieved: number
}

/** One line a rank, columns aligned. */
export function planTable(rows: readonly PlanRow[]): string {
  const head = ['rank', 'device', 'heads', 'kv heads', 'mlp columns', 'vocabulary', 'memory', 'asked', 'achieved']
  const lines = rows.map(({ device, shard, bytes, asked, achieved }, rank) => [
    String(rank),
    device,
    ...shardCells(shard),
    megabytes(bytes),
    percent(asked),
    percent(achieved),
  ])
  const named = rows.some(({ device }) => device !== '')
  return columns([head, ...lines].map((line) => (named ? line : line.toSpliced(1, 1))))
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

function percent(part: number): string {
  return `${(100 * part).toFixed(1)} %`
}
