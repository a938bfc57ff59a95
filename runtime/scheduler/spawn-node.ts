// Starts the ranks of a program as worker threads or child processes, gathers their results, and sees to it that none is left behind.
import { fork } from 'node:child_process'
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { SHARE_ENV, Worker } from 'node:worker_threads'
import { createHostGroup } from '../comm/host-group.ts'
import { segmentName } from '../comm/wire/shm-place.ts'
import { ArgumentError, RankFailedError } from '../core/errors.ts'
import { openDevice } from '../device/open.ts'
import { carriedError } from './carried-error.ts'
import type { Program } from './launch.ts'
import { isEcho } from './launch-local.ts'
import type { Order, Orders, Report, Results } from './role-node.ts'

/** A rank that runs elsewhere. */
interface Started {
  send(order: Order): void
  onReport(listener: (report: Report) => void): void
  /** `how` says how it ended, in words. */
  onEnd(listener: (how: string) => void): void
  /** Ends it, whatever it does. */
  kill(signal: 'SIGTERM' | 'SIGKILL'): void
}

/** After a rank has failed, the others get this long to end by themselves, and as long again after they were told to. */
const GRACE_MS = 2000

/** What calls of launch that started ranks have resolved with: the program that runs again in a rank comes by them. */
let earlier: Results = []

export async function spawn<T>(placement: 'thread' | 'process', call: number, program: Program<T>): Promise<T[]> {
  const { ranks, signal } = program
  const script = scriptOf(program)
  const group = new TextDecoder().decode(createHostGroup(placement === 'thread' ? 'thread' : 'shm').export())
  // Threads share what loading a driver changes in the process, so it is loaded before they begin; and what is not there is refused here.
  for (const name of new Set(program.devices as readonly string[])) (await openDevice(name)).dispose()
  signal?.throwIfAborted()
  const start = placement === 'thread' ? startThread : startChild
  const started = Array.from({ length: ranks }, (_, rank) => start(script, { rank, size: ranks, group, call }))
  for (const one of started) one.send({ kind: 'earlier', results: earlier })
  const results = await supervise<T>(started, signal).finally(() => forget(group))
  earlier = [...earlier, [call, results]]
  return results
}

/** A rank that died while memory was being handed around may have left its name behind. */
function forget(group: string): void {
  const [backend, name] = group.split(':') as [string, string]
  if (backend !== 'shm' || !existsSync('/dev/shm')) return
  for (const file of readdirSync('/dev/shm')) if (file.startsWith(segmentName(name))) rmSync(`/dev/shm/${file}`, { force: true })
}

function supervise<T>(started: readonly Started[], signal: AbortSignal | undefined): Promise<T[]> {
  const results: T[] = []
  const ended = started.map(() => false)
  const reported = started.map(() => false)
  let failure: { error: unknown } | undefined
  const timers: ReturnType<typeof setTimeout>[] = []
  return new Promise<T[]>((resolve, reject) => {
    const settle = (): void => {
      for (const timer of timers) clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
      if (failure) reject(failure.error)
      else resolve(results)
    }
    const kill = (how: 'SIGTERM' | 'SIGKILL'): void => started.forEach((rank, i) => void (ended[i] || rank.kill(how)))
    const stop = (reason: unknown): void => {
      for (const rank of started) rank.send({ kind: 'stop', reason: carriedError.to(reason) })
    }
    const fail = (error: unknown, firsthand = !isEcho(error)): void => {
      const first = failure === undefined
      if (first || (isEcho(failure?.error) && firsthand)) failure = { error }
      if (!first) return
      timers.push(setTimeout(() => stop(error), GRACE_MS / 2))
      timers.push(setTimeout(() => kill('SIGTERM'), GRACE_MS))
      timers.push(setTimeout(() => kill('SIGKILL'), 2 * GRACE_MS))
    }
    const onAbort = (): void => {
      fail(signal?.reason)
      stop(signal?.reason)
    }
    if (signal?.aborted) onAbort()
    signal?.addEventListener('abort', onAbort, { once: true })
    for (const [rank, one] of started.entries()) {
      one.onReport((report) => {
        reported[rank] = true
        if (report.kind === 'result') results[rank] = report.value as T
        else if (report.kind === 'error') fail(carriedError.from(report.error))
        else
          fail(
            new ArgumentError(`Rank ${rank} returned what cannot be cloned: ${report.message}; return data, not tensors or functions`, {
              rank,
            }),
          )
        one.send({ kind: 'bye' })
      })
      one.onEnd((how) => {
        ended[rank] = true
        // Its peers may have told of its end before the system does, which knows more of it.
        const known = failure?.error instanceof RankFailedError && failure.error.rank === rank
        if (!reported[rank]) fail(new RankFailedError(`Rank ${rank} died: ${how}`, { rank }), known)
        if (ended.every(Boolean)) settle()
      })
    }
  })
}

/** The program that ranks run. @throws ERR_ARGUMENT where there is none to run again. */
function scriptOf({ script = process.argv[1] }: Program<unknown>): string {
  if (script === undefined) {
    throw new ArgumentError("This process runs no script that threads or processes could run too; give launch the option 'script'")
  }
  return script instanceof URL || script.startsWith('file:') ? fileURLToPath(script) : script
}

function startThread(script: string, orders: Orders): Started {
  const worker = new Worker(script, { workerData: { rankmesh: orders }, argv: process.argv.slice(2), env: SHARE_ENV })
  let thrown: unknown
  worker.on('error', (error) => {
    thrown = error
  })
  return {
    send: (order) => worker.postMessage(order),
    onReport: (listener) => void worker.on('message', listener),
    onEnd: (listener) =>
      void worker.on('exit', (code) => {
        const why = thrown instanceof Error ? `${thrown.name}: ${thrown.message}` : `exit code ${code}`
        listener(`its thread ended without a result, ${why}`)
      }),
    // A thread that still waits for a GPU takes the process with it when it is ended from outside: only the last resort does that.
    kill: (signal) => void (signal === 'SIGKILL' && worker.terminate()),
  }
}

function startChild(script: string, orders: Orders): Started {
  const child = fork(script, process.argv.slice(2), {
    serialization: 'advanced',
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    env: { ...process.env, RANKMESH_ORDERS: JSON.stringify(orders) },
  })
  child.on('error', () => {}) // a send to a process that has gone; its end is told below
  return {
    send: (order) => void (child.connected && child.send(order, () => {})),
    onReport: (listener) => void child.on('message', (report) => listener(report as Report)),
    onEnd: (listener) =>
      void child.on('exit', (code, signal) => listener(`its process ended with ${signal ?? `exit code ${code}`} and without a result`)),
    kill: (signal) => void child.kill(signal),
  }
}
