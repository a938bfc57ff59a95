// Runs a scenario once per rank, each in a worker thread or a child process of its own, and gathers what became of them.
import { type ChildProcess, fork } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { createHostGroup } from '../../runtime/comm/host-group.ts'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import { bundle } from '../support/bundle.ts'
import type { Outcome, Task } from './program.ts'

/** How ranks are joined: threads with loops and waits in JavaScript, threads with the addon, processes. */
export type Kind = 'thread, JavaScript' | 'thread, native' | 'shm'
export const KINDS: readonly Kind[] = ['thread, JavaScript', 'thread, native', 'shm']

const program = await bundle('test/wire/program.ts')

/** Names of the groups made here. */
const made: string[] = []

/** Why a kind cannot be tested here, or null. */
export function absent(kind: Kind): string | null {
  if (kind === 'thread, JavaScript') return null
  const addon = loadAddon()
  if (!addon) return `the addon is not built (${addonReport().command})`
  return kind === 'shm' && !addon.features().shm.available ? addon.features().shm.detail : null
}

export interface Ranks {
  /** What became of each rank; a rank that died without a word gives its exit. */
  readonly outcomes: Promise<Outcome[]>
  /** Resolves when all have joined their group; never where one does not. */
  readonly joined: Promise<unknown>
  readonly processes: readonly (ChildProcess | null)[]
}

/** `data` goes to every rank, and `ranks` may leave some out. */
export function start(
  kind: Kind,
  {
    size,
    scenario,
    data = null,
    timeoutMs = 20_000,
    ranks,
    group,
  }: Omit<Task, 'rank' | 'group' | 'data' | 'timeoutMs'> & {
    data?: unknown
    timeoutMs?: number
    ranks?: readonly { rank: number; size?: number }[]
    group?: Uint8Array
  },
): Ranks {
  const id = group ?? createHostGroup(kind === 'shm' ? 'shm' : 'thread').export()
  if (!group) made.push(new TextDecoder().decode(id).split(':')[1] as string)
  const addon = kind === 'thread, JavaScript' ? 'off' : (addonReport().path ?? '')
  const processes: (ChildProcess | null)[] = []
  const joined: Promise<void>[] = []
  const listen = (on: (listener: (message: 'joined' | Outcome) => void) => void, resolve: (outcome: Outcome) => void): void => {
    joined.push(new Promise((met) => on((message) => (message === 'joined' ? met() : resolve(message)))))
  }
  const members: readonly { rank: number; size?: number }[] = ranks ?? Array.from({ length: size }, (_, rank) => ({ rank }))
  const outcomes = members.map(({ rank, size: own = size }) => {
    const task: Task = { scenario, rank, size: own, group: [...id], data, timeoutMs }
    if (kind !== 'shm') {
      processes.push(null)
      const worker = new Worker(program, { workerData: task, env: { ...process.env, RANKMESH_ADDON: addon } })
      return new Promise<Outcome>((resolve) => {
        listen((listener) => worker.on('message', listener), resolve)
        worker.on('error', (error) => resolve({ error: { code: 'DIED', message: String(error) } }))
        worker.on('exit', (code) => resolve({ error: { code: 'DIED', message: `exit code ${code}` } }))
      })
    }
    const child = fork(program, [], {
      serialization: 'advanced',
      env: { ...process.env, RANKMESH_ADDON: addon, RANKMESH_TEST_TASK: JSON.stringify(task) },
    })
    processes.push(child)
    return new Promise<Outcome>((resolve) => {
      listen((listener) => child.on('message', listener as (message: unknown) => void), resolve)
      child.on('exit', (code, signal) => resolve({ error: { code: 'DIED', message: `${signal ?? code}` } }))
    })
  })
  return { outcomes: Promise.all(outcomes), joined: Promise.all(joined), processes }
}

/** As `start`, where all ranks must succeed: their values. */
export async function run<T>(kind: Kind, options: Parameters<typeof start>[1]): Promise<T[]> {
  const outcomes = await start(kind, options).outcomes
  return outcomes.map((outcome, rank) => {
    if ('error' in outcome) throw new Error(`rank ${rank}: ${outcome.error.code} ${outcome.error.message}`)
    return outcome.value as T
  })
}

/** Names of segments that the system still has: of the groups made here, as other tests may be under way. */
export function leftovers(): string[] {
  if (!existsSync('/dev/shm')) return []
  return readdirSync('/dev/shm').filter((name) => made.some((id) => name.includes(id)))
}
