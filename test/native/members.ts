// Starts the ranks of the native tests and gathers their answers; the addon, or why it is not there.
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import type { Addon, ReducibleArray } from '../../runtime/core/addon.ts'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'

export const addon: Addon | null = loadAddon()
/** Why there is no addon; empty where there is one. */
export const reason: string = addon
  ? ''
  : `: skipped, no addon (${addonReport()
      .tried.map(({ what, outcome }) => `${what}: ${outcome}`)
      .join('; ')})`

export const MEMBER: string = join(import.meta.dirname, 'member.mjs')

export interface Step {
  array: ReducibleArray
  op: 0 | 1 | 2
  signature: number
  microseconds: number
  /** Where in the member's block the array lies; absent for one of private memory. */
  at?: number
}

export interface Answer {
  result: number
  array: ReducibleArray
  epoch: number
}

/** Does `steps[rank]` on each rank, in threads or processes; answers by rank. */
export async function runMembers(
  how: 'threads' | 'processes',
  steps: readonly (readonly Step[])[],
  byteLength: number,
): Promise<Answer[][]> {
  const size = steps.length
  const path = addonReport().path
  if (how === 'threads') {
    const buffer = new SharedArrayBuffer(byteLength)
    return Promise.all(
      steps.map(async (own, rank) => {
        const worker = new Worker(MEMBER, { workerData: { addon: path, rank, size, buffer, steps: own } })
        const [[answers]] = await Promise.all([once(worker, 'message'), once(worker, 'exit')])
        return answers as Answer[]
      }),
    )
  }
  const name = `rankmesh-test-${process.pid}-${Math.random().toString(36).slice(2)}`
  const segment = addon!.createSegment(name, byteLength)
  try {
    return await Promise.all(
      steps.map(async (own, rank) => {
        const child = fork(MEMBER, ['member'], { serialization: 'advanced', execArgv: [] })
        child.send({ addon: path, rank, size, segment: name, steps: own })
        const [[answers], [code]] = await Promise.all([once(child, 'message'), once(child, 'exit')])
        if (code !== 0) throw new Error(`Rank ${rank} ended with ${code}`)
        return answers as Answer[]
      }),
    )
  } finally {
    segment.unlink()
    segment.close()
  }
}
