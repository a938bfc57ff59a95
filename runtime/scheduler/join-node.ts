// A process that a launcher has started becomes a rank: it finds its peers and the wire to them.
import { BackendUnavailableError } from '../core/errors.ts'
import type { DiscoveredRank } from './discovery.ts'
import type { Program } from './launch.ts'
import type { RunRank } from './placements.ts'

export async function join<T>(_rank: DiscoveredRank, _program: Program<T>, _runRank: RunRank): Promise<T[]> {
  throw new BackendUnavailableError('not yet')
}
