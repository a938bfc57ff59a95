// The table printed after a text: ranks, shards, speed, collectives.

import { columns, megabytes, shardCells } from '../scheduler/plan-table.ts'
import type { RunReport } from './run.ts'

/** A run as text: a table of ranks and shards, then what was measured. */
export function formatReport(report: RunReport): string {
  const rows = report.ranks.map(({ rank, device, shard, bytes }) => [String(rank), device, ...shardCells(shard), megabytes(bytes)])
  const { perToken, collectiveShare: share } = report
  const expected = report.expectedSeconds === null ? '' : `, ${(1 / report.expectedSeconds).toFixed(1)} expected of the measured speeds`
  const facts: [string, string][] = [
    ['adapter', `${report.description}${report.software ? ' (software, slow)' : ''}`],
    ['prompt', `${report.promptTokens} tokens, first token after ${seconds(report.firstTokenSeconds)}`],
    ['text', `${report.newTokens} tokens, ${report.tokensPerSecond.toFixed(1)} tokens/s after the first${expected}`],
    [
      'a token',
      `${perToken.collectives.toFixed(0)} collectives (${perToken.fused.toFixed(0)} fused), ${megabytes(perToken.bytes)} reduced a rank`,
    ],
    ['', `${perToken.submits.toFixed(0)} submit, ${perToken.maps.toFixed(0)} map on the first device, all its ranks together`],
    ['in collectives', share === null ? 'not measured' : `${(100 * share).toFixed(0)} % of the device's compute time`],
    ['load', seconds(report.loadSeconds)],
  ]
  const table = columns([['rank', 'device', 'heads', 'kv heads', 'mlp columns', 'vocabulary', 'memory'], ...rows])
  return `${table}\n${columns(facts)}`
}

function seconds(s: number): string {
  return s < 1 ? `${(1000 * s).toFixed(0)} ms` : `${s.toFixed(1)} s`
}
