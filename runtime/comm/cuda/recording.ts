// Recordings of CUDA ranks whose kernels meet in each other's memory.
import { EngineDevice } from '../../device/engine/device.ts'
import type { Program, Tape } from '../../device/engine/tape.ts'
import * as each from '../device-recording.ts'
import type { Recording } from '../recording.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { CudaGroup, Results } from './group.ts'
import { type Member, recorded } from './member.ts'

const WAY: each.Way<CudaGroup, Results> = {
  recorded,
  programs(group, tapes) {
    const all: Program[] = []
    for (const rank of group.here) all[rank] = EngineDevice.endTape([group.cuda(rank)], tapes[rank] as Tape)
    return all
  },
  launch(group, programs) {
    for (const rank of group.here) {
      group.expect(rank)
      ;(programs[rank] as Program).launch()
    }
  },
}

export function records(member: Member): boolean {
  return each.records(member)
}

export function record(member: Member, step: () => Promise<void>, options: MeetOptions): Promise<Recording> {
  return each.record(member, WAY, step, options)
}
