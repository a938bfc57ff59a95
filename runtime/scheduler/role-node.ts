// What a thread or child process does that a call of launch has started: it runs the program again up to that call, and its rank there.
import { parentPort } from 'node:worker_threads'
import { importHostGroup } from '../comm/host-group.ts'
import type { WireHostComm } from '../comm/wire-host.ts'
import { ArgumentError } from '../core/errors.ts'
import { type CarriedError, carriedError } from './carried-error.ts'
import type { Program } from './launch.ts'
import type { Role, RunRank } from './placements.ts'

/** How long a thread whose rank has ended may go on for other reasons. */
const LINGER_MS = 10_000

/** What a rank is started with. */
export interface Orders {
  rank: number
  size: number
  /** The exported id of the ranks' group. */
  group: string
  /** Which call of launch it was started by. */
  call: number
}

/** What a rank tells whoever started it. */
export type Report = { kind: 'result'; value: unknown } | { kind: 'error'; error: CarriedError } | { kind: 'uncloneable'; message: string }
/** What it is told: what earlier calls of launch resolved with, to end its program early, that its report has arrived. */
export type Order = { kind: 'earlier'; results: Results } | { kind: 'stop'; reason: CarriedError } | { kind: 'bye' }

/** Results of calls of launch that started threads or processes, by their numbers. */
export type Results = readonly (readonly [number, unknown[]])[]

/** The two ends of the line between a rank and whoever started it. */
interface Line {
  send(report: Report): void
  onOrder(listener: (order: Order) => void): void
  /** Ends this thread or process. */
  exit(): void
}

export function threadRole(orders: Orders): Role {
  const port = parentPort as NonNullable<typeof parentPort>
  return roleOver(orders, {
    send: (report) => port.postMessage(report),
    onOrder: (listener) => void port.on('message', listener),
    // A thread that ends while a promise of its GPU is pending takes the process with it. While one is, the event loop goes on; so the thread
    // ends when there is nothing left to do, and is ended only where something else keeps it.
    exit: () => {
      process.exitCode = 0 // the program's own await of launch is never settled
      port.close()
      setTimeout(() => process.exit(), LINGER_MS).unref()
    },
  })
}

export function childRole(orders: Orders): Role {
  // Whoever started this process is gone: nobody wants its result.
  process.on('disconnect', () => process.exit(1))
  return roleOver(orders, {
    send: (report) => void process.send?.(report),
    onOrder: (listener) => void process.on('message', listener as (order: unknown) => void),
    exit: () => process.exit(),
  })
}

function roleOver(orders: Orders, line: Line): Role {
  const stop = new AbortController()
  let told: { earlier: Promise<Results>; bye: Promise<void> } | undefined
  // Begun by the first call of launch: a program that comes to none may end.
  const listen = (): NonNullable<typeof told> => {
    let onEarlier = (_: Results): void => {}
    let onBye = (): void => {}
    const earlier = new Promise<Results>((resolve) => {
      onEarlier = resolve
    })
    const bye = new Promise<void>((resolve) => {
      onBye = resolve
    })
    line.onOrder((order) => {
      if (order.kind === 'earlier') onEarlier(order.results)
      else if (order.kind === 'bye') onBye()
      else stop.abort(carriedError.from(order.reason))
    })
    return { earlier, bye }
  }
  return {
    async run<T>(call: number, program: Program<T>, runRank: RunRank): Promise<T[]> {
      told ??= listen()
      const known = (await told.earlier).find(([number]) => number === call)
      if (known) return known[1] as T[]
      if (call !== orders.call) {
        throw new ArgumentError(`Rank ${orders.rank} was started for call ${orders.call} of launch but came to call ${call}`)
      }
      line.send(await report(orders, program, runRank, stop.signal))
      await told.bye
      line.exit()
      return new Promise(() => {})
    },
  }
}

async function report<T>(orders: Orders, program: Program<T>, runRank: RunRank, stop: AbortSignal): Promise<Report> {
  const { rank, size, group } = orders
  try {
    if (program.ranks !== size)
      throw new ArgumentError(`Rank ${rank} was started as one of ${size}, but its program asks for ${program.ranks} ranks`)
    const id = importHostGroup(new TextEncoder().encode(group))
    const host = (await id.connect({ size, rank, timeoutMs: program.timeoutMs, signal: stop })) as WireHostComm
    const value = await runRank(host.wire, program, stop)
    return cloneable(value) ?? { kind: 'result', value }
  } catch (error) {
    return { kind: 'error', error: carriedError.to(error) }
  }
}

function cloneable(value: unknown): Report | null {
  try {
    structuredClone(value)
    return null
  } catch (error) {
    return { kind: 'uncloneable', message: error instanceof Error ? error.message : String(error) }
  }
}
