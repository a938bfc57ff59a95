// Recordings of CUDA ranks: each rank's commands are a program of its own device, whose kernels meet those of the others as they did the first time.
import { ArgumentError } from '../../core/errors.ts'
import { EngineDevice } from '../../device/engine/device.ts'
import type { Program } from '../../device/engine/tape.ts'
import type { Recording } from '../recording.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { type Member, recorded } from './member.ts'

/** Whether a program of each rank waits for nothing in another rank's queue: its device is its own in this thread, and takes down commands. */
export function records({ group }: Member): boolean {
  const own = group.here.map((rank) => group.cuda(rank))
  return own.every(({ tapes }) => tapes) && new Set(own.map(({ memory }) => memory)).size === own.length
}

/** Runs `step` on each rank, while its commands are taken down. */
export async function record(member: Member, step: () => Promise<void>, options: MeetOptions): Promise<Recording> {
  const device = member.group.cuda(member.rank)
  const check = (): null => {
    if (device.queue.taping) throw new ArgumentError('A step is being recorded: recordings are not part of one another')
    return null
  }
  await recorded(member, 'record()', check, options, (all) => all)
  const before = { ...member.counts }
  const tape = EngineDevice.startTape([device])
  try {
    await step()
    return new CudaRecording(member, EngineDevice.endTape([device], tape), before)
  } catch (error) {
    EngineDevice.dropTape([device], tape)
    throw error
  }
}

class CudaRecording implements Recording {
  readonly #member: Member
  readonly #program: Program
  /** What one run adds to the rank's counts. */
  readonly #counts: Member['counts']
  #disposed = false

  constructor(member: Member, program: Program, before: Member['counts']) {
    this.#member = member
    this.#program = program
    const { collectives, fused, bytes } = member.counts
    this.#counts = { collectives: collectives - before.collectives, fused: fused - before.fused, bytes: bytes - before.bytes }
  }

  async launch(options: MeetOptions = {}): Promise<void> {
    const member = this.#member
    const prepare = (): Program => {
      if (this.#disposed) throw new ArgumentError('This recording was disposed of; record the step again')
      return this.#program
    }
    await recorded(member, 'launch of a recording', prepare, options, (programs) => {
      for (const rank of member.group.here) {
        member.group.expect(rank)
        ;(programs[rank] as Program).launch()
      }
      return programs.map(() => null)
    })
    for (const name of Object.keys(this.#counts) as (keyof Member['counts'])[]) member.counts[name] += this.#counts[name]
  }

  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#program.close()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
