// What launch asks of the place it runs in: whether this is a rank already, and how to start others.
import type { Wire } from '../comm/wire.ts'
import type { DiscoveredRank } from './discovery.ts'
import type { Program } from './launch.ts'

/** Runs main as one rank; see rank.ts. */
export type RunRank = <T>(wire: Wire, program: Program<T>, stop: AbortSignal) => Promise<T>

/** What this thread or process was started as, by a call of launch. */
export interface Role {
  /** Runs the rank when `call` is the one it was started for, and never returns then; gives what an earlier call resolved with. */
  run<T>(call: number, program: Program<T>, runRank: RunRank): Promise<T[]>
}

export interface Placements {
  role(): Role | null
  /** The rank that a launcher's variables make of this process, or null. */
  discover(): DiscoveredRank | null
  /** As one of the processes that a launcher has started; all of them call it. Gives every rank's result. */
  join<T>(rank: DiscoveredRank, program: Program<T>, runRank: RunRank): Promise<T[]>
  /** Starts threads or child processes that run the program again up to its `call`-th launch. */
  spawn<T>(placement: 'thread' | 'process', call: number, program: Program<T>): Promise<T[]>
}
