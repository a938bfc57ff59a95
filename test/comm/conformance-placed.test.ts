// The conformance suite over ranks in threads and processes, and the fused norm in every placement: the same bits.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { beforeAll, describe, expect, it } from 'vitest'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import type { Placement } from '../../runtime/scheduler/launch.ts'
import { bundle } from '../support/bundle.ts'
import { drawn } from '../support/effort.ts'
import { seed } from '../support/random.ts'
import type { Normed, NormPlan, Outcome, Plan } from './placed-program.ts'

interface Kind {
  name: string
  placement: Placement
  /** In turn, each with its share of the cases. */
  ranks: readonly number[]
  brief?: boolean
  /** Set for the program and its ranks. */
  env?: Readonly<Record<string, string>>
  /** Why there is no such group here, or null. */
  absent: string | null
}

const addon = loadAddon()
const unbuilt = `the addon is not built (${addonReport().command})`
const noProcesses = addon ? (addon.features().shm.available ? null : addon.features().shm.detail) : unbuilt

const KINDS: readonly Kind[] = [
  { name: 'threads', placement: 'thread', ranks: [2, 3, 4], absent: null },
  { name: 'threads without the addon', placement: 'thread', ranks: [3], brief: true, env: { RANKMESH_ADDON: 'off' }, absent: null },
  { name: 'processes', placement: 'process', ranks: [2, 3], absent: noProcesses },
  { name: 'processes, few cases', placement: 'process', ranks: [4], brief: true, absent: noProcesses },
]

const PROGRAM_MS = 100_000
const program = await bundle('test/comm/placed-program.ts', { vitest: 'test/support/collect.ts' })
const [start, dealing] = [seed(), seed()]

/** What the program wrote, line by line, and how it ended where that was not well. */
async function run(name: string, plan: unknown, env: Kind['env'] = {}): Promise<{ lines: unknown[]; failed: string | null }> {
  const child = spawn(process.execPath, [program, name, JSON.stringify(plan)], {
    env: { ...process.env, RANKMESH_ADDON: addonReport().path ?? 'off', ...env },
    timeout: PROGRAM_MS,
  })
  let [out, err] = ['', '']
  child.stdout.on('data', (chunk) => {
    out += chunk
  })
  child.stderr.on('data', (chunk) => {
    err += chunk
  })
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null]
  const lines = out
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line))
  return { lines, failed: code === 0 ? null : `${err.slice(-2000).trim()} (${signal ?? `exit code ${code}`})` }
}

/** As `run`, where the program must end well: its one line. */
async function only<T>(name: string, plan: unknown): Promise<T> {
  const { lines, failed } = await run(name, plan)
  if (failed !== null) throw new Error(failed)
  return lines[0] as T
}

/** Ranks with the same error on one line, those that only heard of another's behind the others. */
function told(errors: readonly (string | null)[]): string {
  const texts = [...new Set(errors)].filter((text) => text !== null)
  const own = (text: string): number => Number(text.startsWith('('))
  return texts
    .sort((a, b) => own(a) - own(b))
    .map((text) => {
      const ranks = errors.flatMap((error, rank) => (error === text ? [rank] : []))
      return `rank${ranks.length > 1 ? 's' : ''} ${ranks.join(', ')}: ${text}`
    })
    .join('\n')
}

const planOf = ({ placement, brief = false }: Kind, ranks: number, turn: number): Plan => ({
  placement,
  ranks,
  brief,
  start,
  dealing,
  turn,
})
// Of each kind one number of ranks, in each run another.
const plans = KINDS.flatMap((kind) => drawn(kind.ranks, 1, start).map((ranks, turn) => ({ kind, ranks, plan: planOf(kind, ranks, turn) })))
const names = await only<{ name: string; skipped: boolean }[][]>(
  'names',
  plans.map(({ plan }) => plan),
)

for (const [i, { kind, ranks, plan }] of plans.entries()) {
  if (kind.absent !== null) {
    it.skip(`${kind.name}, ${ranks} ranks: ${kind.absent}`, () => {})
    continue
  }
  describe(`${kind.name}, ${ranks} ranks (seed ${start}, cases ${dealing})`, () => {
    const outcomes = new Map<number, Outcome>()
    let failed: string | null = null
    beforeAll(async () => {
      const ended = await run('cases', plan, kind.env)
      failed = ended.failed
      for (const outcome of ended.lines as Outcome[]) outcomes.set(outcome.at, outcome)
    })

    for (const [at, { name, skipped }] of names[i]!.entries()) {
      if (skipped) it.skip(name, () => {})
      else
        it(name, () => {
          const outcome = outcomes.get(at)
          const missing = names[i]!.findIndex((one, k) => !one.skipped && !outcomes.has(k))
          if (!outcome)
            throw new Error(at === missing ? `did not end on all ranks: ${failed}` : 'not run: a case before it has ended the program')
          if (outcome.errors.some((error) => error !== null)) throw new Error(told(outcome.errors))
        })
    }
    it('the program ends well', () => expect(failed).toBeNull())
  })
}

it(`the fused norm has the same bits in every placement, one-shot and two-shot (seed ${start})`, async () => {
  const ranks = 3
  const norms = (plan: Pick<NormPlan, 'placement' | 'devices' | 'algorithms'>): Promise<Normed[]> =>
    only('norms', { ranks, start, ...plan })
  const algorithms = ['one-shot', 'two-shot'] as const
  const [[first] = []] = await norms({ placement: 'local', devices: 1, algorithms: ['on-device'] })
  const CALLS = 9
  for (const placement of ['local', 'thread', 'process'] as const) {
    if (placement === 'process' && noProcesses) {
      console.log(`placement process not run: ${noProcesses}`)
      continue
    }
    const found = await norms({ placement, devices: ranks, algorithms })
    // In this thread nothing crosses a wire; elsewhere the rounds show that it was another algorithm.
    const wanted = algorithms.map((_, i) => ({ digest: first?.digest, crossings: placement === 'local' ? 0 : CALLS * (i + 1) }))
    expect(found, placement).toEqual(Array(ranks).fill(wanted))
  }
})
