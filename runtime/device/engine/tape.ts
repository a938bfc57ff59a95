// Tape: what several queues record between two moments, so that it can be run again at once, as a program.
import type { EngineProgram, ProgramPart } from '../../core/addon.ts'
import type { Block, Memory } from './memory.ts'
import type { Progress, Queue } from './queue.ts'

/** One queue's part of a tape: its commands as words, but for waits for what lies outside of the tape, which each run finds out anew. */
export class TapePart {
  readonly queue: Queue
  /** Commands that the queue had recorded before. */
  readonly base: number
  words: Float64Array = new Float64Array(1024)
  length = 0
  /** Commands on the tape. */
  count = 0
  /** Blocks that the commands use, and whether any of them writes. */
  readonly uses: Map<Block, boolean> = new Map()
  /** Freed blocks that only this part uses, by size: what one run gives back, the next takes again. */
  readonly kept: Map<number, Block[]> = new Map()
  /** By commands that the queue has recorded since: how many of them are on the tape. */
  readonly #counts: number[] = []

  constructor(queue: Queue) {
    this.queue = queue
    this.base = queue.recorded
  }

  /** Takes the command that was recorded last, in words [from, to). */
  take(words: Float64Array, from: number, to: number): void {
    if (this.length + to - from > this.words.length) {
      const longer = new Float64Array(2 * this.words.length + to - from)
      longer.set(this.words)
      this.words = longer
    }
    this.words.set(words.subarray(from, to), this.length)
    this.length += to - from
    this.#counts.push(++this.count)
  }

  /** Leaves the command that was recorded last out. */
  skip(): void {
    this.#counts.push(this.count)
  }

  use(block: Block, written: boolean): void {
    if (written || !this.uses.has(block)) this.uses.set(block, written)
  }

  /** Commands on the tape up to the queue's `epoch`. */
  countAt(epoch: number): number {
    return epoch <= this.base ? 0 : (this.#counts[epoch - this.base - 1] as number)
  }
}

export class Tape {
  readonly parts: readonly TapePart[]
  readonly #byProgress: ReadonlyMap<Progress, TapePart>
  /** Memory with what the host has written meanwhile: the same each time. */
  readonly constants: { release(): void }[] = []

  constructor(queues: readonly Queue[]) {
    this.parts = queues.map((queue) => new TapePart(queue))
    this.#byProgress = new Map(this.parts.map((part) => [part.queue.progress, part]))
  }

  partOf(progress: Progress): TapePart | undefined {
    return this.#byProgress.get(progress)
  }

  /** As engines take it. */
  get program(): ProgramPart[] {
    return this.parts.map(({ queue, words, length }) => ({ queue: queue.progress.id, words, count: length }))
  }
}

/** Who has used a block when a run ends: part, and command of it. */
interface Use {
  part: TapePart
  count: number
}

/** A tape that is run again and again, each run as one command of each of its queues would be. */
export class Program {
  readonly #tape: Tape
  readonly #memory: Memory
  readonly #native: EngineProgram
  readonly #left: { block: Block; writer: Use | undefined; readers: Use[] }[]

  /** At the moment at which the tape ends: how blocks are left then is how each run leaves them. `native` is made of `tape.program`. */
  constructor(native: EngineProgram, memory: Memory, tape: Tape) {
    this.#native = native
    this.#tape = tape
    this.#memory = memory
    const blocks = new Set(tape.parts.flatMap(({ uses }) => [...uses.keys()]))
    const useOf = (progress: Progress | null | undefined, epoch: number): Use[] => {
      const part = progress && tape.partOf(progress)
      return part && epoch > part.base ? [{ part, count: part.countAt(epoch) }] : []
    }
    this.#left = [...blocks].map((block) => ({
      block,
      writer: useOf(block.writer, block.written)[0],
      readers: block.readers.slice(0, block.readings).flatMap((reader, i) => useOf(reader, block.read[i] as number)),
    }))
  }

  /** Hands all parts over, behind what other queues do with the memory. */
  launch(): void {
    const { parts } = this.#tape
    // First all waits: they are for what was recorded before this run.
    for (const { queue, uses } of parts) for (const [block, written] of uses) queue.order(block, written)
    const bases = parts.map(({ queue }) => {
      queue.flush()
      return queue.recorded
    })
    this.#native.launch(bases)
    for (const { queue, count } of parts) queue.ran(count)
    const epoch = ({ part, count }: Use): number => (bases[parts.indexOf(part)] as number) + count
    for (const { block, writer, readers } of this.#left) {
      if (writer) block.noteWrite(writer.part.queue.progress, epoch(writer))
      for (const reader of readers) block.noteRead(reader.part.queue.progress, epoch(reader))
    }
  }

  /** Why it can be launched no more. */
  get ended(): string | null {
    return this.#native.ended?.() ?? null
  }

  /** Runs that are under way end; then the memory that was the program's own is given back. */
  close(): void {
    this.#native.close()
    for (const storage of this.#tape.constants.splice(0)) storage.release()
    for (const { kept } of this.#tape.parts) this.#memory.drop(kept)
  }
}
