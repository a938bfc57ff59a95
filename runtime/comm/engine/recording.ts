// Recordings of ranks on one engine: what all of them record between two meetings is one program.
import { ArgumentError } from '../../core/errors.ts'
import { EngineDevice } from '../../device/engine/device.ts'
import type { Program, Tape } from '../../device/engine/tape.ts'
import { RankRecording, type Recording } from '../recording.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { type Member, recorded } from './member.ts'

/** Runs `step` on each rank, while its commands are taken down. */
export async function record(member: Member, step: () => Promise<void>, options: MeetOptions): Promise<Recording> {
  const { devices } = member.group
  let tape: Tape | undefined
  const begin = (): Tape[] => {
    if (devices.some(({ queue }) => queue.taping))
      throw new ArgumentError('A step is being recorded: recordings are not part of one another')
    const begun = EngineDevice.startTape(devices)
    return devices.map(() => begun)
  }
  const counts = { ...member.counts }
  try {
    tape = await recorded(member, 'record()', () => null, options, begin)
    await step()
    const taken = tape
    const end = (): Held[] => {
      const held = new Held(EngineDevice.endTape(devices, taken), devices.length)
      return devices.map(() => held)
    }
    const held = await recorded(member, 'end of record()', () => null, options, end)
    const launch = (check: () => void, options: MeetOptions): Promise<unknown> => {
      const prepare = (): null => {
        check()
        return null
      }
      return recorded(member, 'launch of a recording', prepare, options, () => {
        held.program.launch()
        return devices.map(() => null)
      })
    }
    return new RankRecording(member.counts, counts, launch, () => held.release())
  } catch (error) {
    if (tape) EngineDevice.dropTape(devices, tape)
    throw error
  }
}

/** A program, until no rank needs it any more. */
class Held {
  readonly program: Program
  #ranks: number

  constructor(program: Program, ranks: number) {
    this.program = program
    this.#ranks = ranks
  }

  release(): void {
    if (--this.#ranks === 0) this.program.close()
  }
}
