// EngineDevice: one rank's view of a device whose commands an engine runs, by number. Ranks share its memory; each has a queue of its own.
import type { Engine, EngineProgram, ProgramPart } from '../../core/addon.ts'
import type { DType } from '../../core/dtype.ts'
import { ArgumentError, DeviceError, type RankmeshError } from '../../core/errors.ts'
import type { Storage } from '../../core/storage.ts'
import type { Tensor } from '../../core/tensor.ts'
import { argmaxBy } from '../argmax.ts'
import type { Attention, Device, KernelTime, Product, RmsNorm, RopeAppend, SiluMul, TreeProduct } from '../device.ts'
import { OP, OP_NAMES, OP_TYPES, TYPE_NAMES } from './commands.ts'
import { type Block, type EngineStorage, engineStorage, Memory, writableStorage } from './memory.ts'
import * as ops from './ops.ts'
import { type Operand, Queue } from './queue.ts'
import { Program, Tape } from './tape.ts'

/** Freed bytes that are kept where the program has other uses for them. */
const KEEP_BYTES = 512 * 2 ** 20
/** The same of memory that bytes go through on their way to where JavaScript does not see them. */
const KEEP_STAGING_BYTES = 64 * 2 ** 20
/** Longer writes are not staged as a whole. */
const STAGED_BYTES = 2 ** 20

/** What the views of one device share. */
export class Processor {
  readonly kind: 'cpu' | 'cuda'
  readonly name: string
  readonly description: string
  readonly software: boolean
  readonly engine: Engine
  readonly memory: Memory
  /** Memory that JavaScript sees and commands copy from and to; the same as `memory` where that is such. */
  readonly staging: Memory
  /** Whether each view's thread stays on a processor core of its own. */
  readonly pinned: boolean
  readonly queues: Set<WeakRef<Queue>> = new Set()
  views = 0
  failure: RankmeshError | null = null
  disposed = false

  constructor(engine: Engine, is: { kind: 'cpu' | 'cuda'; name: string; description: string; software: boolean; pinned?: boolean }) {
    this.kind = is.kind
    this.name = is.name
    this.description = is.description
    this.software = is.software
    this.engine = engine
    const host = engine.allocateHost?.bind(engine)
    this.memory = new Memory(engine, is.description, host ? Number.POSITIVE_INFINITY : KEEP_BYTES)
    const source = { allocate: host as typeof engine.allocate, free: engine.free.bind(engine) }
    this.staging = host ? new Memory(source, `the system, for copies to and from ${is.description},`, KEEP_STAGING_BYTES) : this.memory
    this.pinned = is.pinned ?? false
  }
}

/**
 * Looks after work of which its end alone does not tell how it went, such as kernels that wait for other ranks: called where somebody waits for
 * the queue, to `read` a block or for nothing but its end; what it gives, when that is over, tells what went wrong.
 */
export type Guard = (read?: Block) => () => RankmeshError | null

export abstract class EngineDevice implements Device {
  readonly guards: Set<Guard> = new Set()
  readonly queue: Queue
  protected readonly processor: Processor
  /** Freed blocks of this rank, by size. */
  readonly #kept = new Map<number, Block[]>()
  #tape: Tape | null = null
  /** The same of what bytes are staged in. */
  readonly #keptStaging: Map<number, Block[]>

  protected constructor(processor: Processor) {
    this.processor = processor
    this.#keptStaging = processor.staging === processor.memory ? this.#kept : new Map()
    this.queue = new Queue(processor.engine.createQueue(processor.pinned ? processor.views : -1))
    processor.views++
    processor.queues.add(new WeakRef(this.queue))
  }

  /** Another rank's view of the same memory, with a queue of its own. */
  abstract view(): EngineDevice

  get kind(): 'cpu' | 'cuda' {
    return this.processor.kind
  }

  get name(): string {
    return this.processor.name
  }

  get description(): string {
    return this.processor.description
  }

  get software(): boolean {
    return this.processor.software
  }

  get failure(): RankmeshError | null {
    return this.processor.failure
  }

  get memory(): Memory {
    return this.processor.memory
  }

  allocate(byteLength: number): Storage {
    return this.storage(byteLength)
  }

  /** As `allocate`; with `idle` the memory may be written at once, whatever is still to run. */
  storage(byteLength: number, idle = false): EngineStorage {
    if (this.failure) throw this.failure
    return this.memory.allocate(byteLength, this.#tape?.partOf(this.queue.progress)?.kept ?? this.#kept, idle)
  }

  /** Whether commands can be taken down, to be run again; see `startTape`. */
  get tapes(): boolean {
    return this.processor.engine.createProgram !== undefined
  }

  /**
   * From now on, until `endTape`, what these views of one device are given to do is also taken down. Memory that they allocate meanwhile and free
   * is used by each run, and by nobody else. What the host writes meanwhile is written again by each run.
   */
  static startTape(views: readonly EngineDevice[]): Tape {
    const tape = new Tape(views.map(({ queue }) => queue))
    for (const view of views) {
      view.#tape = tape
      view.queue.tape(tape)
    }
    return tape
  }

  /** The tape as a program. */
  static endTape(views: readonly EngineDevice[], tape: Tape): Program {
    EngineDevice.dropTape(views, tape)
    const { engine, memory } = (views[0] as EngineDevice).processor
    return new Program((engine as Required<Engine>).createProgram(tape.program), memory, tape)
  }

  /** Tapes of devices, one view of each, as programs that `create` makes all at once. */
  static endTapes(
    ended: readonly { view: EngineDevice; tape: Tape }[],
    create: (all: { engine: Engine; parts: ProgramPart[] }[]) => EngineProgram[],
  ): Program[] {
    for (const { view, tape } of ended) EngineDevice.dropTape([view], tape)
    const natives = create(ended.map(({ view, tape }) => ({ engine: view.processor.engine, parts: tape.program })))
    return ended.map(({ view, tape }, i) => new Program(natives[i] as EngineProgram, view.memory, tape))
  }

  /** Ends taking down, where it has not ended. */
  static dropTape(views: readonly EngineDevice[], tape: Tape): void {
    for (const view of views) {
      if (view.#tape !== tape) continue
      view.#tape = null
      view.queue.tape(null)
    }
  }

  write(storage: Storage, byteOffset: number, bytes: Uint8Array): void {
    if (this.failure) throw this.failure
    const { block, byteLength } = writableStorage(this.memory, storage)
    if (byteOffset + bytes.byteLength > byteLength)
      throw new DeviceError(`A write of ${bytes.byteLength} bytes at ${byteOffset} passes the storage's end`)
    if (bytes.byteLength === 0) return
    if (block.bytes && block.idle && !this.#tape) {
      block.bytes.set(bytes, byteOffset)
      return
    }
    if (!block.bytes && bytes.byteLength > STAGED_BYTES && !this.#tape) {
      this.queue.write(block, byteOffset, bytes)
      return
    }
    const staged = this.#stage(bytes.byteLength, true)
    staged.bytes.set(bytes)
    this.queue.record(OP.copy, [bytes.byteLength], [staged, { block, offset: byteOffset }], [1])
    if (this.#tape) this.#tape.constants.push(staged)
    else staged.release()
  }

  async read(storage: Storage, byteOffset: number, byteLength: number): Promise<Uint8Array<ArrayBuffer>> {
    if (this.failure) throw this.failure
    const { block } = engineStorage(this.memory, storage)
    const staged = this.#stage(byteLength, false)
    this.queue.record(OP.copy, [byteLength], [{ block, offset: byteOffset }, staged], [1])
    try {
      await this.#finish(block)
      return staged.bytes.slice(0, byteLength)
    } finally {
      staged.release()
    }
  }

  embedding(ids: Tensor, table: Tensor, options?: { first?: number; dtype?: DType; out?: Tensor }): Tensor {
    return ops.embedding(this, ids, table, options)
  }

  matmul(x: Tensor, w: Tensor, options?: Product): Tensor {
    return ops.matmul(this, x, w, options)
  }

  matmulTree(x: Tensor, w: Tensor, options: TreeProduct): Tensor {
    return ops.matmulTree(this, x, w, options)
  }

  ropeAppend(x: Tensor, options: RopeAppend): Tensor {
    return ops.ropeAppend(this, x, options)
  }

  attention(q: Tensor, options: Attention): Tensor {
    return ops.attention(this, q, options)
  }

  siluMul(x: Tensor, options?: SiluMul): Tensor {
    return ops.siluMul(this, x, options)
  }

  rmsNorm(x: Tensor, weight: Tensor, options?: RmsNorm): Tensor {
    return ops.rmsNorm(this, x, weight, options)
  }

  add(a: Tensor, b: Tensor, options?: { out?: Tensor }): Tensor {
    return ops.add(this, a, b, options)
  }

  softmax(x: Tensor, options?: { out?: Tensor }): Tensor {
    return ops.softmax(this, x, options)
  }

  argmax(x: Tensor, options?: { out?: Tensor }): Tensor {
    return argmaxBy((...given) => ops.topK(this, ...given), x, options)
  }

  topK(x: Tensor, k: number): { values: Tensor; indices: Tensor } {
    return ops.topK(this, x, k)
  }

  cast(x: Tensor, dtype: DType, options?: { out?: Tensor }): Tensor {
    return ops.cast(this, x, dtype, options)
  }

  copy(from: Tensor, to: Tensor): void {
    ops.copy(this, from, to)
  }

  async profile(work: () => Promise<void>): Promise<KernelTime[]> {
    await this.sync()
    this.queue.measure()
    await work()
    await this.sync()
    return this.queue.measured().map(({ op, types, runs, nanoseconds }) => {
      const name = OP_NAMES[op] as (typeof OP_NAMES)[number]
      const variant = types.slice(0, OP_TYPES[name]).map((type) => TYPE_NAMES[type])
      return { kernel: [name, ...variant].join(' '), runs, nanoseconds }
    })
  }

  async sync(): Promise<void> {
    if (this.failure) throw this.failure
    await this.#finish()
  }

  /** Ends the device for every view of it: pending work fails with ERR_DEVICE, its memory is given back. */
  dispose(): void {
    const { disposed, queues, memory, staging, engine } = this.processor
    if (disposed) return
    this.processor.disposed = true
    this.processor.failure ??= new DeviceError(`The device ${this.description} was disposed; open a new one to go on`)
    for (const queue of queues) queue.deref()?.close()
    memory.dispose()
    staging.dispose()
    engine.close?.()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  async #finish(read?: Block): Promise<void> {
    if (this.#tape) throw new ArgumentError('A step that is recorded cannot wait for its results: read them behind it')
    const ends = [...this.guards].map((guard) => guard(read))
    const done = await this.queue.finish().catch((cause: Error) => {
      // Of all views: what the device has run since, nobody knows.
      this.processor.failure ??= new DeviceError(`The device ${this.description} has failed: ${cause.message}; open a new one to go on`, {
        cause,
      })
      return false
    })
    const wrong = ends.map((end) => end()).find((error) => error !== null)
    if (wrong) throw wrong
    if (this.failure) throw this.failure
    if (!done) throw new DeviceError(`The queue of ${this.description} has ended; open a new device to go on`)
  }

  /** Memory that JavaScript sees, for a copy. */
  #stage(byteLength: number, idle: boolean): Operand & { bytes: Uint8Array<ArrayBuffer>; release(): void } {
    const storage = this.processor.staging.allocate(byteLength, this.#keptStaging, idle)
    const { block } = storage
    return { block, offset: 0, bytes: block.bytes as Uint8Array<ArrayBuffer>, release: () => storage.release() }
  }
}
