// launch: runs one async function once per rank and gives each its rank, its device and its communicator, wherever the ranks are placed.
import { placements } from '#placements'
import type { Communicator } from '../comm/communicator.ts'
import type { HostComm } from '../comm/host.ts'
import { MAX_TIMEOUT_MS } from '../comm/rendezvous.ts'
import { DEFAULT_TIMEOUT_MS } from '../comm/world.ts'
import { checkInteger, invalidArgument } from '../core/errors.ts'
import type { Device } from '../device/device.ts'
import { launchLocal } from './launch-local.ts'
import { blockOf, devicesFor } from './placement.ts'
import { runRank } from './rank.ts'

/**
 * Where ranks run. `local`: in this thread, as concurrent async functions. `thread`: a worker thread each. `process`: a child process each,
 * or, in a process that `rankmesh run`, torchrun, mpirun or srun has started, this process as one of them, over any number of machines.
 */
export type Placement = 'local' | 'thread' | 'process'

export interface LaunchOptions {
  /** 1 to 64. In a process that a launcher has started it may be left out. */
  ranks?: number
  /** Defaults to `process` in a process that a launcher has started, else to `local`. */
  placement?: Placement
  /**
   * The device of all ranks: a name for openDevice, or, in this thread, a device. Defaults to `webgpu`. `cuda` alone are all CUDA devices of a
   * machine, which its ranks take in contiguous blocks.
   */
  device?: string | Device
  /** Several devices: ranks take them in contiguous blocks. */
  devices?: readonly (string | Device)[]
  /** Milliseconds until a collective that misses a rank fails with ERR_TIMEOUT. Defaults to ten minutes. */
  timeoutMs?: number
  /** Ends the program: pending collectives of all ranks fail. */
  signal?: AbortSignal
  /**
   * The program that threads and child processes run, which must come to the same call of launch; by default this process's own program.
   * What it does before that call, it does on every rank; behind it, only the program that called launch goes on.
   */
  script?: string | URL
}

export interface RankContext {
  readonly rank: number
  readonly size: number
  readonly device: Device
  readonly comm: Communicator
  readonly host: HostComm
  /** Aborts when another rank has failed or the program is to end: stop waiting for things that are no collectives. */
  readonly signal: AbortSignal
}

export type Main<T> = (context: RankContext) => Promise<T> | T

/** What every placement is given, checked. */
export interface Program<T> {
  ranks: number
  devices: readonly (string | Device)[]
  timeoutMs: number
  signal: AbortSignal | undefined
  script: string | URL | undefined
  main: Main<T>
}

export const MAX_RANKS = 64

/** Calls of launch so far, by which a thread or process that runs the program again knows its own. */
let calls = 0

/**
 * Runs `main` for ranks 0 to ranks-1 and resolves with their results in rank order. Devices opened here are disposed at the end, so
 * results should be data, not tensors; from threads and processes they come as structured clones.
 * @throws what the first failing rank threw; its peers' pending collectives fail with ERR_RANK_FAILED. ERR_ARGUMENT,
 * ERR_BACKEND_UNAVAILABLE before any rank starts.
 */
export async function launch<T>(options: LaunchOptions, main: Main<T>): Promise<T[]> {
  const given = options ?? ({} as LaunchOptions)
  const call = calls++
  const role = placements.role()
  const world = role === null && (given.placement ?? 'process') === 'process' ? placements.discover() : null
  const { ranks = world?.size as number, placement = world ? 'process' : 'local', device = 'webgpu', devices: names = [device] } = given
  const { timeoutMs = DEFAULT_TIMEOUT_MS, signal, script } = given
  checkInteger('ranks', ranks, 1, world ? Number.MAX_SAFE_INTEGER : MAX_RANKS)
  checkInteger('timeoutMs', timeoutMs, 1, MAX_TIMEOUT_MS)
  if (typeof main !== 'function') throw invalidArgument('main', 'an async function of the rank context', main)
  if (!PLACEMENTS.includes(placement)) throw invalidArgument('placement', PLACEMENTS.join(', '), placement)
  signal?.throwIfAborted()
  const local = world ? { rank: world.localRank ?? world.rank, size: world.localSize ?? world.size } : undefined
  const devices = devicesFor(names, ranks, local)
  const program: Program<T> = { ranks, devices, timeoutMs, signal, script, main }
  if (placement === 'local') return launchLocal(program)
  checkNames(devices, ranks)
  if (role) return role.run(call, program, runRank)
  return world ? placements.join(world, program, runRank) : placements.spawn(placement, call, program)
}

const PLACEMENTS: readonly Placement[] = ['local', 'thread', 'process']

/** A device of this thread cannot be another thread's. */
function checkNames(devices: readonly (string | Device)[], ranks: number): void {
  if (!Array.isArray(devices) || devices.length === 0) throw invalidArgument('devices', 'a list of at least one device', devices)
  if (devices.length > ranks) throw invalidArgument('devices', `at most one for each of the ${ranks} ranks`, devices.length)
  for (const device of devices) {
    if (typeof device !== 'string') throw invalidArgument('devices', 'names, as every thread and process opens its own,', device)
  }
}

/** The name of a rank's device among those of its program. */
export function deviceNameOf(rank: number, { ranks, devices }: Pick<Program<unknown>, 'ranks' | 'devices'>): string {
  return devices[blockOf(rank, ranks, devices.length)] as string
}
