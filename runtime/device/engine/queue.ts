// The commands of one rank on their way to what runs them: recorded, ordered against other ranks' use of the same memory, handed over.
import type { EngineQueue } from '../../core/addon.ts'
import { OP } from './commands.ts'
import type { Block } from './memory.ts'
import type { Tape, TapePart } from './tape.ts'

/** Commands after which they are handed over although nobody reads yet: the rank computes while it records. */
const COMMAND_LIMIT = 16

/** Bytes of a block from `offset` on. */
export interface Operand {
  block: Block
  offset: number
}

/** How far a queue has come. Blocks remember this, not the queue, so that a queue may go while they stay. */
export class Progress {
  readonly id: number
  /** Commands known to have run. */
  completed = 0
  /** Set while there are commands that are not known to have run. */
  queue: Queue | null = null

  constructor(id: number) {
    this.id = id
  }
}

export class Queue {
  readonly progress: Progress
  readonly #native: EngineQueue
  #words = new Float64Array(1024)
  #length = 0
  #pending = 0
  /** Where the command that is being recorded begins. */
  #from = 0
  /** Commands recorded so far. */
  recorded = 0
  #tape: Tape | null = null
  #part: TapePart | undefined
  /** How far this queue already waits for others. */
  readonly #awaited = new Map<Progress, number>()

  constructor(native: EngineQueue) {
    this.#native = native
    this.progress = new Progress(native.id)
  }

  /** `numbers` are the words between op and operands; the operands at `written` are written, the others read. */
  record(op: number, numbers: readonly number[], operands: readonly Operand[], written: readonly number[]): void {
    for (let i = 0; i < operands.length; i++) this.order((operands[i] as Operand).block, written.includes(i))
    this.#begin(1 + numbers.length + 2 * operands.length)
    this.#command(op, numbers, operands)
    this.#use(operands, written)
    this.#end()
    if (this.#pending >= COMMAND_LIMIT) this.flush()
  }

  /**
   * Records one command on several queues of one device, the first of which leads: its work is shared out among them once all have come to it,
   * and it ends for all at once. Handed over at once, since a queue that has come to it waits for the others.
   */
  static meet(
    queues: readonly Queue[],
    op: number,
    numbers: readonly number[],
    operands: readonly Operand[],
    written: readonly number[],
  ): void {
    const [lead, ...others] = queues as [Queue, ...Queue[]]
    // All that the others have recorded has run when they come.
    for (const other of others) lead.#awaited.set(other.progress, other.recorded)
    for (let i = 0; i < operands.length; i++) lead.order((operands[i] as Operand).block, written.includes(i))
    const id = meetings++
    for (const other of others) {
      other.#begin(4)
      other.#meet(id, queues.length, 0)
      other.#end()
      other.flush()
    }
    lead.#begin(5 + numbers.length + 2 * operands.length)
    lead.#meet(id, queues.length, 1)
    lead.#command(op, numbers, operands)
    lead.#use(operands, written)
    lead.#end()
    lead.flush()
    for (const queue of queues) for (const other of queues) if (other !== queue) queue.#awaited.set(other.progress, other.recorded)
  }

  /** Copies bytes into a block, which JavaScript does not see, behind what was recorded; may wait for the device. `bytes` may change then. */
  write(block: Block, offset: number, bytes: Uint8Array): void {
    this.order(block, true)
    this.#begin(0)
    this.flush()
    this.#native.write?.(block.id, offset, bytes)
    block.noteWrite(this.progress, this.recorded)
  }

  /** Hands over what was recorded. */
  flush(): void {
    if (this.#pending === 0) return
    const length = this.#length
    this.#length = 0
    this.#pending = 0
    this.#native.submit(this.#words, length)
  }

  /** Resolves with true once everything recorded before has run, with false where the device ends before. */
  async finish(): Promise<boolean> {
    this.flush()
    const epoch = this.recorded
    if (this.progress.completed >= epoch) return true
    const done = await this.#native.finish()
    if (done) {
      this.progress.completed = Math.max(this.progress.completed, epoch)
      if (this.progress.completed === this.recorded) this.progress.queue = null
    }
    return done
  }

  /** From now on, or with null no more, commands are also taken down. */
  tape(tape: Tape | null): void {
    this.#tape = tape
    this.#part = tape?.partOf(this.progress)
  }

  get taping(): boolean {
    return this.#tape !== null
  }

  /** A program has handed over `count` commands. */
  ran(count: number): void {
    this.recorded += count
    this.progress.queue = this
  }

  measure(): void {
    this.#native.measure()
  }

  measured(): ReturnType<EngineQueue['measured']> {
    return this.#native.measured()
  }

  close(): void {
    this.#native.close()
  }

  /** Puts what comes next behind what other queues do with the block. */
  order(block: Block, write: boolean): void {
    if (block.writer && block.writer !== this.progress) this.#await(block.writer, block.written)
    if (!write) return
    const { readers, read, readings } = block
    for (let i = 0; i < readings; i++) if (readers[i] !== this.progress) this.#await(readers[i] as Progress, read[i] as number)
  }

  #await(other: Progress, epoch: number): void {
    // What is on one tape with this has not run when it is run again.
    const taped = this.#tape?.partOf(other)
    const within = taped !== undefined && epoch > taped.base
    if ((epoch <= other.completed && !within) || epoch <= (this.#awaited.get(other) ?? 0)) return
    // Only what is handed over is waited for, so queues cannot wait for one another in a circle.
    other.queue?.flush()
    this.#awaited.set(other, epoch)
    this.#begin(3)
    this.#word(OP.wait)
    this.#word(other.id)
    this.#word(epoch)
    this.#pending++
    if (within) this.#part?.take(WAIT.with(1, other.id).with(2, taped.countAt(epoch)), 0, 3)
    else this.#part?.skip()
  }

  /** The command that was begun last uses these. */
  #use(operands: readonly Operand[], written: readonly number[]): void {
    const epoch = this.recorded
    for (let i = 0; i < operands.length; i++) {
      const { block } = operands[i] as Operand
      if (written.includes(i)) block.noteWrite(this.progress, epoch)
      else block.noteRead(this.progress, epoch)
      this.#part?.use(block, written.includes(i))
    }
  }

  /** Counts a command and makes room for its words. */
  #begin(words: number): void {
    this.recorded++
    this.progress.queue = this
    this.#from = this.#length
    if (this.#length + words <= this.#words.length) return
    const longer = new Float64Array(2 * this.#words.length + words)
    longer.set(this.#words)
    this.#words = longer
  }

  /** The command is whole. */
  #end(): void {
    this.#pending++
    this.#part?.take(this.#words, this.#from, this.#length)
  }

  #meet(id: number, queues: number, leads: 0 | 1): void {
    this.#word(OP.meet)
    this.#word(id)
    this.#word(queues)
    this.#word(leads)
  }

  #command(op: number, numbers: readonly number[], operands: readonly Operand[]): void {
    this.#word(op)
    for (let i = 0; i < numbers.length; i++) this.#word(numbers[i] as number)
    for (let i = 0; i < operands.length; i++) {
      const { block, offset } = operands[i] as Operand
      this.#word(block.id)
      this.#word(offset)
    }
  }

  #word(word: number): void {
    this.#words[this.#length++] = word
  }
}

const WAIT = Float64Array.of(OP.wait, 0, 0)

/** Meetings so far. */
let meetings = 0
