// The conformance suite in ranks that share no thread: `node placed-program.mjs NAME JSON`, bundled with collect.ts in the place of vitest.
import { createHash } from 'node:crypto'
import { writeSync } from 'node:fs'
import type { AlgorithmName } from '../../runtime/comm/algorithms.ts'
import { RankFailedError, RankmeshError, TimeoutError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { openDevice } from '../../runtime/device/open.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { type LaunchOptions, launch, type Placement, type RankContext } from '../../runtime/scheduler/launch.ts'
import { type Collected, casesOf } from '../support/collect.ts'
import { Random } from '../support/random.ts'
import { allCases, type Group, groupOf, shareOf } from './conformance.ts'
import { FLOATS } from './conformance-reduce.ts'

/** The suite over one group. */
export interface Plan {
  placement: Placement
  ranks: number
  brief: boolean
  /** Of the cases' data. */
  start: number
  /** Which share of the pairwise cases; see shareOf. */
  dealing: number
  turn: number
}

/** A case that all ranks have ended: what went wrong on each, or null. */
export interface Outcome {
  at: number
  errors: (string | null)[]
}

/** The fused norm over one group. */
export interface NormPlan {
  placement: Placement
  ranks: number
  start: number
  /** In this thread: devices that the ranks share; elsewhere each rank has its own. */
  devices: number
  algorithms: readonly AlgorithmName[]
}

/** What a rank found with each algorithm: a digest of all bits, and the rounds in which bytes left it. */
export type Normed = { digest: string; crossings: number }[]

/** What must happen in one wait; a case that exceeds it ends the program. */
const TIMEOUT_MS = 20_000
const DEVICE = 'webgpu:software'

const [name, json] = process.argv.slice(2) as [string, string]

/** A line on standard output at once, also from a thread that is about to end. */
const tell = (value: unknown): void => void writeSync(1, `${JSON.stringify(value)}\n`)

function suiteOf({ ranks, brief, start, dealing, turn }: Plan, run: Group['run']): { group: Group; cases: Collected[] } {
  const place = Array<number>(ranks).fill(0) // each rank has a device of its own: one order, ascending
  const group = groupOf({ place, random: new Random(start), share: shareOf(dealing, turn) }, run)
  return { group, cases: casesOf(() => allCases(group, brief)) }
}

/** Every rank runs each case, in a group of its own, so that a case that fails on one rank fails there for all and the next may begin. */
async function runCases(plan: Plan): Promise<void> {
  await launch({ ranks: plan.ranks, placement: plan.placement, device: DEVICE, timeoutMs: TIMEOUT_MS }, async (world) => {
    let context: RankContext
    const { group, cases } = suiteOf(plan, async (main) => context.host.allGather(await main(context)))
    const { pool } = (world.device as WebGpuDevice).gpu
    for (const [at, { body }] of cases.entries()) {
      if (!body) continue
      group.random = new Random(plan.start + at) // in step on all ranks, wherever the case before has ended
      const before = pool.liveBuffers
      const comm = (await world.comm.split({ color: 0 }))!
      context = { ...world, comm, host: comm.host }
      let error: unknown = null
      try {
        await body()
      } catch (thrown) {
        error = thrown
        comm.abort(thrown)
      }
      comm.destroy()
      const held = pool.liveBuffers - before
      if (error === null && held !== 0) error = new Error(`${held} more buffers are held after the case than before it`)
      const late = originOf(error) instanceof TimeoutError
      const all = await world.host.allGather({ text: error === null ? null : textOf(error), late })
      if (world.rank === 0) tell({ at, errors: all.map(({ text }) => text) } satisfies Outcome)
      if (all.some((one) => one.late)) throw new Error('A case ran out of time; those behind it were not run')
    }
  })
}

/** What a case of `each` has wrapped. */
function originOf(error: unknown): unknown {
  return error instanceof Error && error.cause instanceof RankmeshError ? error.cause : error
}

/** In brackets what a rank only heard of another's failure, which says less than that one does. */
function textOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  return originOf(error) instanceof RankFailedError ? `(${text})` : text
}

async function runNorms({ placement, ranks, start, devices, algorithms }: NormPlan): Promise<Normed[]> {
  const opened = placement === 'local' ? await Promise.all(Array.from({ length: devices }, () => openDevice(DEVICE))) : []
  const options: LaunchOptions = { ranks, placement, devices: placement === 'local' ? opened : [DEVICE], timeoutMs: TIMEOUT_MS }
  const results = await launch(options, async (context) => {
    const found: Normed = []
    for (const algorithm of algorithms) found.push(await normed(context, algorithm, new Random(start)))
    return found
  })
  for (const device of opened) device.dispose()
  return results
}

async function normed({ rank, size, comm, device }: RankContext, algorithm: AlgorithmName, random: Random): Promise<Normed[number]> {
  const hash = createHash('sha256')
  const before = comm.stats().crossings
  for (const [rows, n] of [
    [size, 64],
    [7, 1000],
    [5, 33],
  ] as const) {
    for (const dtype of FLOATS) {
      const partials = Array.from({ length: size }, () => random.floats(rows * n))
      const [stream, gamma, added] = [random.floats(rows * n), random.floats(n), random.floats(n)]
      using x = Tensor.from(partials[rank]!, { shape: [rows, n], dtype, device })
      using residual = Tensor.from(stream, { shape: [rows, n], dtype, device })
      using weight = Tensor.from(gamma, { dtype, device })
      using bias = Tensor.from(added, { dtype, device })
      using y = await comm.allReduceResidualBiasRMSNorm({ x, residual, weight, bias, algorithm })
      hash.update(await residual.bytes()).update(await y.bytes())
    }
  }
  return { digest: hash.digest('hex'), crossings: comm.stats().crossings - before }
}

const programs: Record<string, (plan: never) => Promise<unknown>> = {
  names: async (plans: Plan[]) =>
    plans.map((plan) => suiteOf(plan, async () => []).cases.map(({ name, body }) => ({ name, skipped: !body }))),
  cases: runCases,
  norms: runNorms,
}

const program = programs[name]
if (!program) throw new Error(`no program ${name}`)
try {
  const result = await program(JSON.parse(json) as never)
  if (result !== undefined) tell(result)
} catch (error) {
  console.error(error instanceof Error ? `${error.name}: ${error.message}` : error)
  process.exitCode = 1
}
