// Recordings of ranks that NCCL joins: each rank's program holds its calls of NCCL, which are captured together on all ranks of a thread.
import { ArgumentError, DeviceError } from '../../core/errors.ts'
import { EngineDevice } from '../../device/engine/device.ts'
import type { Program, Tape } from '../../device/engine/tape.ts'
import * as each from '../device-recording.ts'
import type { Results } from '../queued.ts'
import type { Recording } from '../recording.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { NcclGroup } from './group.ts'
import { type Member, recorded } from './member.ts'

/** The release whose calls graphs can hold. */
const CAPTURED = 21104

const WAY: each.Way<NcclGroup, Results> = {
  recorded,
  programs(group, tapes) {
    try {
      const ended = group.here.map((rank) => ({ view: group.cuda(rank), tape: tapes[rank] as Tape }))
      const made = EngineDevice.endTapes(ended, (all) => group.nccl.createPrograms(all))
      const all: Program[] = []
      for (const [i, rank] of group.here.entries()) all[rank] = made[i] as Program
      return all
    } catch (error) {
      throw group.look() ?? new DeviceError(`The step cannot be recorded: ${(error as Error).message}`, { cause: error })
    }
  },
  launch(group, programs) {
    // First of all: what one rank launches waits for the others.
    for (const rank of group.here) {
      const why = (programs[rank] as Program).ended
      if (why !== null) throw ended(why)
    }
    try {
      for (const rank of group.here) (programs[rank] as Program).launch()
    } catch (error) {
      throw group.look() ?? ended((error as Error).message)
    }
  },
}

export function records(member: Member): boolean {
  return member.group.version >= CAPTURED && each.records(member)
}

export function record(member: Member, step: () => Promise<void>, options: MeetOptions): Promise<Recording> {
  return each.record(member, WAY, step, options)
}

function ended(why: string): ArgumentError {
  return new ArgumentError(
    `This recording holds collectives of a group that has ended (${why}); record the step again, over a group that is there`,
  )
}
