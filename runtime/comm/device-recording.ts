// Recordings of ranks with a CUDA device each: every rank's commands are a program of its own device, whose collectives meet those of the others as
// they did the first time.
import { ArgumentError } from '../core/errors.ts'
import { EngineDevice } from '../device/engine/device.ts'
import type { Program, Tape } from '../device/engine/tape.ts'
import type { Run } from './calls/run.ts'
import type { QueuedGroup, QueuedMember } from './queued.ts'
import { RankRecording, type Recording } from './recording.ts'
import type { MeetOptions } from './rendezvous.ts'
import type { Operand } from './staged/group.ts'

/** How a kind of group makes programs and runs them; all by rank, of the ranks that are here. */
export interface Way<G extends QueuedGroup, S> {
  recorded: Run<QueuedMember<G>, Operand, S, 'now'>
  programs(group: G, tapes: readonly Tape[]): Program[]
  launch(group: G, programs: readonly Program[]): void
}

/** Whether a program of each rank waits for nothing in another rank's queue: its device is its own in this thread, and takes down commands. */
export function records({ group }: QueuedMember<QueuedGroup>): boolean {
  const own = group.here.map((rank) => group.device(rank))
  return own.every(({ tapes }) => tapes) && new Set(own.map(({ memory }) => memory)).size === own.length
}

/** Runs `step` on each rank, while its commands are taken down. */
export async function record<G extends QueuedGroup, S>(
  member: QueuedMember<G>,
  way: Way<G, S>,
  step: () => Promise<void>,
  options: MeetOptions,
): Promise<Recording> {
  const device = member.group.device(member.rank)
  const check = (): null => {
    if (device.queue.taping) throw new ArgumentError('A step is being recorded: recordings are not part of one another')
    return null
  }
  await way.recorded(member, 'record()', check, options, (all) => all)
  const number = ++member.recordings
  const before = { ...member.counts }
  const tape = EngineDevice.startTape([device])
  try {
    await step()
    const program = await way.recorded(
      member,
      'end of record()',
      () => tape,
      options,
      (tapes) => way.programs(member.group, tapes),
    )
    const launch = (check: () => void, options: MeetOptions): Promise<unknown> => {
      const prepare = (): Program => {
        check()
        return program
      }
      // Numbered, since all ranks launch the same.
      return way.recorded(member, `launch of recording ${number}`, prepare, options, (programs) => {
        way.launch(member.group, programs)
        return programs.map(() => null)
      })
    }
    return new RankRecording(member.counts, before, launch, () => program.close())
  } catch (error) {
    EngineDevice.dropTape([device], tape)
    throw error
  }
}
