// Recordings of ranks on one engine: what all of them record between two meetings is one program.
import { ArgumentError } from '../../core/errors.ts'
import { EngineDevice } from '../../device/engine/device.ts'
import type { Program, Tape } from '../../device/engine/tape.ts'
import type { Recording } from '../recording.ts'
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
    return new EngineRecording(member, held, difference(member.counts, counts))
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

type Counts = Member['counts']

class EngineRecording implements Recording {
  readonly #member: Member
  readonly #held: Held
  /** What one run adds to the rank's counts. */
  readonly #counts: Counts
  #disposed = false

  constructor(member: Member, held: Held, counts: Counts) {
    this.#member = member
    this.#held = held
    this.#counts = counts
  }

  async launch(options: MeetOptions = {}): Promise<void> {
    const member = this.#member
    const check = (): null => {
      if (this.#disposed) throw new ArgumentError('This recording was disposed of; record the step again')
      return null
    }
    await recorded(member, 'launch of a recording', check, options, () => {
      this.#held.program.launch()
      return member.group.devices.map(() => null)
    })
    for (const name of Object.keys(this.#counts) as (keyof Counts)[]) member.counts[name] += this.#counts[name]
  }

  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#held.release()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

function difference(now: Counts, before: Counts): Counts {
  return { collectives: now.collectives - before.collectives, fused: now.fused - before.fused, bytes: now.bytes - before.bytes }
}
