// One rank of a test program: joins its group and plays a scenario. Runs in a worker thread or a child process.
import { isMainThread, parentPort, workerData } from 'node:worker_threads'
import { importHostGroup } from '../../runtime/comm/host-group.ts'
import type { WireHostComm } from '../../runtime/comm/wire-host.ts'
import { scenarios } from './scenarios.ts'

export interface Task {
  scenario: string
  rank: number
  size: number
  group: number[]
  data: unknown
  timeoutMs: number
}

export type Outcome = { value: unknown } | { error: { code: string; message: string; rank?: number; afterMs?: number } }

const task: Task = isMainThread ? JSON.parse(process.env.RANKMESH_TEST_TASK as string) : workerData

async function play(): Promise<Outcome> {
  const began = performance.now()
  try {
    const { rank, size, timeoutMs } = task
    const host = (await importHostGroup(new Uint8Array(task.group)).connect({ size, rank, timeoutMs })) as WireHostComm
    tell('joined')
    const scenario = scenarios[task.scenario]
    if (!scenario) throw new Error(`no scenario ${task.scenario}`)
    try {
      return { value: await scenario(host, task.data as never) }
    } finally {
      host.close()
    }
  } catch (error) {
    const { code = 'UNTYPED', message, rank } = error as { code?: string; message: string; rank?: number }
    return { error: { code, message, ...(rank !== undefined && { rank }), afterMs: performance.now() - began } }
  }
}

/** Says that this rank has joined its group, and in the end what became of it. */
function tell(message: 'joined' | Outcome, done: () => void = () => {}): void {
  if (isMainThread) process.send?.(message, done)
  else parentPort?.postMessage(message)
}

tell(await play(), () => process.disconnect())
