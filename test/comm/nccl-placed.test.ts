// Collectives over NCCL of ranks in threads and in processes, whose devices do not reach each other's memory; and a process that ends in the middle.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { describe, expect, it } from 'vitest'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import { buildNccl } from '../native/nccl-double/build.ts'
import { bundle } from '../support/bundle.ts'

const RANKS = 3
process.env.RANKMESH_CUDA_DOUBLE = `devices ${RANKS};peers 0`
const { control, reason } = await import('../support/cuda.ts')
if (reason === '') process.env.RANKMESH_NCCL_PATH = await buildNccl()
const noProcesses = reason || (loadAddon()?.features().shm.available ? '' : `: skipped, ${loadAddon()?.features().shm.detail}`)
const program = reason === '' ? await bundle('test/comm/nccl-placed-program.ts') : ''

interface Told {
  rank?: number
  describe: string
  found: number[][]
  code: string
  who?: number
  ended?: string
}

async function run(placement: string, what: string, env: Record<string, string> = {}): Promise<Told[]> {
  const child = spawn(process.execPath, [program, placement, String(RANKS), what], {
    env: { ...process.env, RANKMESH_ADDON: addonReport().path ?? 'off', ...env },
    timeout: 100_000,
  })
  let [out, err] = ['', '']
  child.stdout.on('data', (chunk) => {
    out += chunk
  })
  child.stderr.on('data', (chunk) => {
    err += chunk
  })
  const [code, signal] = await once(child, 'close')
  expect([code, signal], err).toEqual([0, null])
  const lines = out.split('\n').filter(Boolean)
  return lines.map((line) => JSON.parse(line) as Told).sort((a, b) => (a.rank ?? RANKS) - (b.rank ?? RANKS))
}

describe.skipIf(reason !== '')(`ranks that share no thread, over NCCL${reason}`, () => {
  it.each([
    ['thread', reason],
    ['process', noProcesses],
  ])('collectives of ranks with a %s each', async (placement, absent) => {
    if (absent !== '') return console.warn(`ranks with a ${placement} each${absent}`)
    const told = await run(placement, 'collectives')
    const x = Array.from({ length: 3 * RANKS }, (_, i) => i)
    const sum = x.map((value) => value * RANKS)
    expect(told.map(({ rank }) => rank)).toEqual([0, 1, 2])
    expect(control.counts().reports, 'complaints of the doubles').toBe(0)
    for (const [rank, { describe, found }] of told.entries()) {
      expect(describe).toMatch(/^3 ranks .*: NCCL 2\.30\.7$/)
      const mine = [3 * rank, 3 * rank + 1, 3 * rank + 2]
      const previous = (rank + RANKS - 1) % RANKS
      expect(found).toEqual([
        sum,
        mine.map((i) => i * RANKS),
        [1, 1, 2, 2, 3, 3],
        [...mine, ...mine, ...mine],
        [previous + 1, previous + 1],
        rank === 0 ? [1, 1] : [5, 5],
        [24, 24], // of four runs
      ])
    }
  })

  it.skipIf(noProcesses !== '')(`a process that is killed while the others wait for it: they are told${noProcesses}`, async () => {
    const told = await run('process', 'leaves', { RANKMESH_NCCL_DOUBLE_FAULT: 'ncclAllReduce:1:1:stuck' })
    expect(told).toEqual([
      { rank: 0, code: 'ERR_RANK_FAILED', who: 1 },
      { rank: 2, code: 'ERR_RANK_FAILED', who: 1 },
      { ended: 'ERR_RANK_FAILED' },
    ])
  })
})
