// Processes that are one program: their output line by line under their rank, and one end for all.
import { type ChildProcess, spawn } from 'node:child_process'
import { constants } from 'node:os'
import type { Readable } from 'node:stream'
import { linePrefixer } from './prefix.ts'

export interface Command {
  file: string
  args: readonly string[]
  /** The file is Node itself. */
  node: boolean
  env: NodeJS.ProcessEnv
}

/** When one rank has failed, the others have this long to say what they saw of it and end; then SIGTERM, then as long again, then SIGKILL. */
const GRACE_MS = 3000
/** A process that is gone may have left its pipes to processes of its own; what comes through them later is lost. */
const DRAIN_MS = 500

const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/**
 * Ends this Node process when the pipe `RANKMESH_PARENT_FD` closes, that is when `rankmesh run` is gone, however it went. Loaded before the
 * script, in the main thread only; the variable is taken away so that no process started by the script looks at the same number.
 */
const WATCH_PARENT = `
import { isMainThread } from 'node:worker_threads'
import { Socket } from 'node:net'
const fd = process.env.RANKMESH_PARENT_FD
if (isMainThread && fd) {
  delete process.env.RANKMESH_PARENT_FD
  const socket = new Socket({ fd: Number(fd), readable: true, writable: false })
  const end = () => {
    setTimeout(() => process.kill(process.pid, 'SIGKILL'), ${GRACE_MS}).unref()
    process.kill(process.pid, 'SIGTERM')
  }
  socket.on('end', end).on('error', end).resume().unref()
}`
const PARENT_FD = 3
const PRELOAD = `--import=data:text/javascript,${encodeURIComponent(WATCH_PARENT)}`

interface Rank {
  child: ChildProcess
  ended: boolean
  /** It has ended and its output is written. */
  done: Promise<void>
}

/**
 * Starts all commands and resolves when all have ended: with the exit code of the first that failed (128 + number for a signal, 127 where
 * it could not be started), or 0. Signals to this process go on to all. Each process leads a group of its own, and what it leaves behind
 * in that group ends with it; where this process is killed, Node scripts notice and end, other commands do not. They read no input.
 */
export async function runTogether(commands: readonly (Command & { rank: number })[]): Promise<number> {
  const ranks: Rank[] = []
  const timers: NodeJS.Timeout[] = []
  let code = 0
  let interrupted = false

  const signalAll = (signal: NodeJS.Signals): void => {
    for (const { child, ended } of ranks) if (!ended) signalGroup(child, signal)
  }
  const fail = (exitCode: number, message: string): void => {
    if (code !== 0) return
    code = exitCode
    if (!interrupted) process.stderr.write(`rankmesh run: ${message}${commands.length > 1 ? '; ending the others' : ''}\n`)
    timers.push(setTimeout(signalAll, GRACE_MS, 'SIGTERM'), setTimeout(signalAll, 2 * GRACE_MS, 'SIGKILL'))
  }
  const forward = (signal: NodeJS.Signals): void => {
    interrupted = true
    signalAll(signal)
  }
  const onClosed = (): void => {
    interrupted = true // nobody reads what could be said
    fail(128 + constants.signals.SIGPIPE, '')
  }

  for (const out of [process.stdout, process.stderr]) out.setMaxListeners(0).on('error', onClosed)
  for (const signal of FORWARDED) process.on(signal, forward)
  try {
    for (const command of commands) ranks.push(start(command, fail))
    await Promise.all(ranks.map(({ done }) => done))
  } finally {
    for (const timer of timers) clearTimeout(timer)
    for (const signal of FORWARDED) process.off(signal, forward)
  }
  return code
}

function start({ file, args, node, env, rank }: Command & { rank: number }, fail: (code: number, message: string) => void): Rank {
  const child = spawn(file, [...(node ? [PRELOAD, '--'] : []), ...args], {
    env: node ? { ...env, RANKMESH_PARENT_FD: String(PARENT_FD) } : env,
    stdio: ['ignore', 'pipe', 'pipe', ...(node ? (['pipe'] as const) : [])],
    detached: process.platform !== 'win32',
  })
  const outputs = [prefixLines(child.stdout as Readable, process.stdout, rank), prefixLines(child.stderr as Readable, process.stderr, rank)]
  const started: Rank = { child, ended: false, done: Promise.resolve() }
  started.done = new Promise((resolve) => {
    const end = async (): Promise<void> => {
      started.ended = true
      if (child.pid !== undefined) signalGroup(child, 'SIGKILL')
      const late = setTimeout(() => {
        for (const { stop } of outputs) stop()
      }, DRAIN_MS)
      await Promise.all(outputs.map(({ written }) => written))
      clearTimeout(late)
      resolve()
    }
    child.on('error', (error) => {
      if (child.pid !== undefined) return // a signal that came too late
      fail(127, `rank ${rank} could not be started: ${error.message}`)
      void end()
    })
    child.once('exit', (code, signal) => {
      if (signal) fail(128 + constants.signals[signal], `rank ${rank} (process ${child.pid}) was ended by ${signal}`)
      else if (code) fail(code, `rank ${rank} (process ${child.pid}) exited with code ${code}`)
      void end()
    })
  })
  return started
}

/** `written` resolves when all that came is written, or nobody reads it any more; `stop` lets what has not come yet go. */
function prefixLines(from: Readable, to: NodeJS.WriteStream, rank: number): { written: Promise<void>; stop(): void } {
  const prefixer = linePrefixer(`[${rank}] `)
  from.pipe(prefixer).pipe(to, { end: false })
  to.once('error', () => prefixer.unpipe(to).resume())
  const written = new Promise<void>((resolve) => {
    prefixer.once('end', resolve)
  })
  const stop = (): void => {
    from.unpipe(prefixer)
    from.destroy()
    prefixer.end()
  }
  return { written, stop }
}

/** To a process and all that it started and that stayed in its group; gone already is no error. */
function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  try {
    if (process.platform === 'win32') child.kill(signal)
    else process.kill(-(child.pid as number), signal)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
