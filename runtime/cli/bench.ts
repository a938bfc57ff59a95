// `rankmesh bench`: times a collective over a range of sizes, results checked first, in the conventions of nccl-tests.
import { randomInt } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import type { HostComm } from '../comm/host.ts'
import { WireHostComm } from '../comm/wire-host.ts'
import { type DType, dtypeSize } from '../core/dtype.ts'
import { ArgumentError } from '../core/errors.ts'
import { discoverRank } from '../scheduler/discovery.ts'
import { type LaunchOptions, launch, type RankContext } from '../scheduler/launch.ts'
import { COLLECTIVES, type Collective } from './bench-collectives.ts'
import type { BenchOp } from './bench-values.ts'
import { plotSvg } from './plot.ts'

const OPTIONS = {
  placement: { type: 'string' },
  backend: { type: 'string' },
  device: { type: 'string', multiple: true },
  ranks: { type: 'string' },
  'min-bytes': { type: 'string', default: '8' },
  'max-bytes': { type: 'string', default: '16M' },
  factor: { type: 'string', default: '2' },
  dtype: { type: 'string', default: 'float32' },
  op: { type: 'string', default: 'sum' },
  iters: { type: 'string', default: '20' },
  warmup: { type: 'string', default: '5' },
  verify: { type: 'boolean', default: true },
  json: { type: 'boolean' },
  svg: { type: 'string' },
} as const

/** What every rank is told; plain data, the same on all. */
interface Task {
  collective: string
  counts: readonly number[]
  dtype: DType
  op: BenchOp
  iterations: number
  warmup: number
  verify: boolean
}

/** What a rank tells. */
interface Measured {
  /** Rank 0's, with which all have drawn their values. */
  seed: number
  device: string
  software: boolean
  group: string
  sizes: { microseconds: number[]; errors: number }[]
}

/** One line of the table; stable, as part of what --json prints. Bandwidths in 1e9 bytes a second. */
interface Row {
  bytes: number
  count: number
  dtype: string
  op: string
  microseconds: { median: number; min: number }
  algbw: number
  busbw: number
  /** Elements that were wrong, over all ranks; null where nothing was checked. */
  errors: number | null
}

const DEFAULT_RANKS = 2
const MAX_BYTES = 2 ** 31

/** The placement that a backend of the host collectives has. */
const BACKENDS: Readonly<Record<string, NonNullable<LaunchOptions['placement']>>> = { local: 'local', thread: 'thread', shm: 'process' }

/** @returns 1 where a result was wrong, else 0. @throws ERR_ARGUMENT, and what launch throws. */
export async function bench(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({ args, options: OPTIONS, allowPositionals: true, allowNegative: true })
  const [name = '', ...rest] = positionals
  const collective = Object.hasOwn(COLLECTIVES, name) ? (COLLECTIVES[name] as Collective) : undefined
  if (!collective || rest.length > 0)
    throw new ArgumentError(`Expected one of ${Object.keys(COLLECTIVES).join(', ')} but received ${JSON.stringify(positionals.join(' '))}`)
  const world = discoverRank(process.env)
  const ranks = world && values.ranks === undefined ? world.size : integer('--ranks', values.ranks ?? `${DEFAULT_RANKS}`, 1, 64)
  const dtype = choice('--dtype', values.dtype, collective.dtypes)
  const op = choice('--op', values.op, collective.ops)
  if (op === 'avg' && !/float/.test(dtype)) throw new ArgumentError(`--op avg is for floats, not for --dtype ${dtype}`)
  const task: Task = {
    collective: name,
    counts: name === 'host-barrier' ? [0] : countsOf(values, collective, ranks, dtype),
    dtype,
    op,
    iterations: integer('--iters', values.iters, 1, 1_000_000),
    warmup: integer('--warmup', values.warmup, 0, 1_000_000),
    verify: values.verify,
  }
  const placement = placementOf(values, name)
  const options: LaunchOptions = { ranks, devices: values.device ?? ['webgpu'], ...(placement && { placement }) }
  const measured = await launch(options, (context) => measure(task, context))
  if (world && world.rank !== 0) return 0
  const rows = task.counts.map((count, i) => rowOf(task, collective, count, i, measured))
  const { seed, device, software, group } = measured[0] as Measured
  const about = { collective: name, ranks, placement: placement ?? (world ? 'process' : 'local'), device, software, group, seed }
  if (values.json) process.stdout.write(`${JSON.stringify({ ...about, rows }, null, 2)}\n`)
  else process.stdout.write(`${headOf(about)}${tableOf(rows)}`)
  if (values.svg !== undefined) {
    const points = rows.map(({ bytes, microseconds, busbw }) => ({ bytes, microseconds: microseconds.median, busbw }))
    writeFileSync(values.svg, plotSvg({ title: `${name}, ${ranks} ranks, ${dtype}`, subtitle: `${about.placement}: ${group}`, points }))
  }
  return rows.some(({ errors }) => errors) ? 1 : 0
}

/** What one rank does: for each size, one run that is checked, runs to warm up, and runs that are timed from a barrier on. */
async function measure({ collective, counts, dtype, op, iterations, warmup, verify }: Task, context: RankContext): Promise<Measured> {
  const { comm, device, host } = context
  const seed = await host.broadcast(randomInt(2 ** 32), { root: 0 })
  const sizes: Measured['sizes'] = []
  for (const count of counts) {
    const prepared = await (COLLECTIVES[collective] as Collective).prepare(context, { seed, count, dtype, op })
    const first = await prepared.run()
    const errors = verify ? await prepared.check(first) : 0
    prepared.release(first)
    for (let i = 0; i < warmup; i++) prepared.release(await prepared.run())
    const microseconds: number[] = []
    for (let i = 0; i < iterations; i++) {
      await host.barrier()
      const start = performance.now()
      const result = await prepared.run()
      microseconds.push((performance.now() - start) * 1000)
      prepared.release(result)
    }
    await host.barrier()
    prepared.dispose()
    sizes.push({ microseconds, errors })
  }
  const { description = device.name, software = false } = device as { description?: string; software?: boolean }
  return { seed, device: description, software, group: collective.startsWith('host-') ? aboutHost(host) : comm.describe(), sizes }
}

function aboutHost(host: HostComm): string {
  return `${host.size} ranks, host memory: ${host instanceof WireHostComm ? host.wire.about : 'one thread'}`
}

function rowOf({ dtype, op, verify }: Task, collective: Collective, count: number, i: number, measured: readonly Measured[]): Row {
  const sizes = measured.map((rank) => rank.sizes[i] as Measured['sizes'][number])
  const times = (sizes[0]?.microseconds ?? []).map((_, run) => Math.max(...sizes.map(({ microseconds }) => microseconds[run] as number)))
  times.sort((a, b) => a - b)
  const middle = times.length >> 1
  const median = times.length % 2 ? (times[middle] as number) : ((times[middle - 1] as number) + (times[middle] as number)) / 2
  const bytes = count * dtypeSize(dtype) * (collective.parts ? measured.length : 1)
  const algbw = bytes / median / 1000
  return {
    bytes,
    count,
    dtype,
    op: collective.reduces ? op : 'none',
    microseconds: { median, min: times[0] as number },
    algbw,
    busbw: algbw * collective.busFactor(measured.length),
    errors: verify ? sizes.reduce((sum, { errors }) => sum + errors, 0) : null,
  }
}

/** Counts from the least to the most bytes, rounded to what the ranks can share; none twice. */
function countsOf(
  values: { 'min-bytes': string; 'max-bytes': string; factor: string },
  collective: Collective,
  ranks: number,
  dtype: DType,
): number[] {
  const max = bytesOf('--max-bytes', values['max-bytes'])
  const min = bytesOf('--min-bytes', values['min-bytes'])
  if (min > max) throw new ArgumentError(`--min-bytes ${values['min-bytes']} is more than --max-bytes ${values['max-bytes']}`)
  const factor = Number(values.factor)
  if (!(factor > 1 && factor <= 1024))
    throw new ArgumentError(`Expected a number above 1 and at most 1024 for --factor but received ${JSON.stringify(values.factor)}`)
  const counts = new Set<number>()
  for (let bytes = min; bytes <= max; bytes *= factor) {
    const elements = Math.floor(bytes / dtypeSize(dtype) / (collective.parts ? ranks : 1))
    counts.add(Math.max(1, elements > 4096 && collective === COLLECTIVES.fused ? elements - (elements % 4096) : elements))
  }
  return [...counts]
}

function placementOf({ placement, backend }: { placement?: string; backend?: string }, collective: string): LaunchOptions['placement'] {
  const host = collective.startsWith('host-')
  if (backend !== undefined && backend !== 'webgpu' && !(host && Object.hasOwn(BACKENDS, backend)))
    throw new ArgumentError(
      `Expected ${host ? `one of ${Object.keys(BACKENDS).join(', ')}` : 'webgpu'} for --backend but received ${JSON.stringify(backend)}`,
    )
  const implied = host && backend !== undefined ? BACKENDS[backend] : undefined
  if (implied !== undefined && placement !== undefined && placement !== implied)
    throw new ArgumentError(`--backend ${backend} is --placement ${implied}, not ${placement}; leave one of them out`)
  return (placement as LaunchOptions['placement']) ?? implied
}

function headOf({ collective, ranks, placement, device, software, group, seed }: Record<string, string | number | boolean>): string {
  const speed = software ? ' (a SOFTWARE adapter: speed says nothing about a GPU)' : ''
  return [
    `# ${collective}, ${ranks} ranks, placement ${placement}, seed ${seed}`,
    `# ${group}`,
    `# ${device}${speed}`,
    "# Times are of the slowest rank, from a barrier until its result is there. Sizes are of the full buffer: of all ranks' parts in",
    '# all-gather, reduce-scatter and all-to-all. algbw = size / median; busbw = algbw x 2(n-1)/n for all-reduce, (n-1)/n for those three.',
    '',
  ].join('\n')
}

function tableOf(rows: readonly Row[]): string {
  const head = ['size', 'count', 'type', 'redop', 'median', 'min', 'algbw', 'busbw', 'errors']
  const units = ['(B)', '(elements)', '', '', '(us)', '(us)', '(GB/s)', '(GB/s)', '#wrong']
  const lines = rows.map(({ bytes, count, dtype, op, microseconds, algbw, busbw, errors }) => [
    String(bytes),
    String(count),
    dtype,
    op,
    microseconds.median.toFixed(1),
    microseconds.min.toFixed(1),
    bandwidth(algbw),
    bandwidth(busbw),
    errors === null ? 'N/A' : String(errors),
  ])
  const all = [head, units, ...lines]
  const widths = head.map((_, column) => Math.max(...all.map((cells) => (cells[column] as string).length)))
  return all.map((cells) => `${cells.map((cell, column) => cell.padStart(widths[column] as number)).join('  ')}\n`).join('')
}

function bandwidth(gigabytes: number): string {
  return gigabytes === 0 || gigabytes >= 0.001 ? gigabytes.toPrecision(3) : gigabytes.toExponential(1)
}

/** `16M` → 16777216. */
function bytesOf(name: string, text: string): number {
  const [, digits, unit = ''] = /^(\d{1,10})([kmg]?)$/i.exec(text) ?? []
  const bytes = Number(digits) * 1024 ** ['', 'k', 'm', 'g'].indexOf(unit.toLowerCase())
  if (!(bytes >= 1 && bytes <= MAX_BYTES))
    throw new ArgumentError(`Expected bytes like 8, 64K or 16M, at most 2G, for ${name} but received ${JSON.stringify(text)}`)
  return bytes
}

function integer(name: string, text: string, min: number, max: number): number {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN
  if (!(value >= min && value <= max))
    throw new ArgumentError(`Expected an integer in [${min}, ${max}] for ${name} but received ${JSON.stringify(text)}`)
  return value
}

function choice<T extends string>(name: string, text: string, choices: readonly T[]): T {
  const found = choices.find((one) => one === text)
  if (found === undefined) throw new ArgumentError(`Expected one of ${choices.join(', ')} for ${name} but received ${JSON.stringify(text)}`)
  return found
}
