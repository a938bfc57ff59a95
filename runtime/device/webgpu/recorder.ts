// The recorder: ranks record commands into lanes; lanes become one stream; the stream becomes one submit and, where it reads, one map.
import { DeviceError, OutOfMemoryError, type RankmeshError } from '../../core/errors.ts'
import { type Command, type MergedCommand, paddedBytes, type Range, type Read, type Reader } from './commands.ts'
import { type DeviceStats, Encoder } from './encoder.ts'
import { Lanes } from './lanes.ts'
import type { BufferPool } from './pool.ts'
import type { Profiler } from './profiler.ts'

export type { DeviceStats }

/** Commands, and bytes to upload, after which all is submitted although nobody reads yet. */
const COMMAND_LIMIT = 8192
const UPLOAD_LIMIT = 64 * 2 ** 20

export class Recorder {
  readonly #device: GPUDevice
  readonly #pool: BufferPool
  readonly #afterTurn: (task: () => void) => void
  readonly #encoder: Encoder
  readonly #lanes = new Lanes()
  #stream: MergedCommand[] = []
  #flushAsked = false
  /** Bytes that wait to be uploaded, and to be read. */
  #uploadBytes = 0
  #readBytes = 0
  /** Who waits for bytes. */
  readonly #readers = new Set<Reader>()
  /** A failure that nobody waited for: the next read tells it. */
  #owed: RankmeshError | null = null
  #failure: RankmeshError | null = null

  constructor(device: GPUDevice, pool: BufferPool, afterTurn: (task: () => void) => void) {
    this.#device = device
    this.#pool = pool
    this.#afterTurn = afterTurn
    this.#encoder = new Encoder(device)
    pool.onDestroy = () => this.#encoder.forgetBindings()
    pool.onPressure = () => this.flush()
  }

  get stats(): DeviceStats {
    return this.#encoder.stats
  }

  get profiler(): Profiler | null {
    return this.#encoder.profiler
  }

  set profiler(profiler: Profiler | null) {
    this.#encoder.profiler = profiler
  }

  /** Opens a lane: the commands of one rank, in its own order. */
  addLane(): number {
    return this.#lanes.open()
  }

  record(lane: number, command: Command): void {
    this.#admit(command)
    this.#lanes.add(lane, command, this.#stream)
    if (this.#lanes.length(lane) >= COMMAND_LIMIT || this.#uploadBytes >= UPLOAD_LIMIT) this.flush()
  }

  /** Bytes of a range once everything recorded before has run. The device is asked when the current turn of the event loop ends. */
  read(lane: number, from: Range): Promise<Uint8Array<ArrayBuffer>> {
    return new Promise((resolve, reject) => {
      this.record(lane, { kind: 'read', from, readers: [{ resolve, reject }] })
      this.#askFlush()
    })
  }

  /** Moves the commands of these ranks into the stream; the same command of every rank becomes one. */
  merge(lanes: readonly number[]): void {
    this.#lanes.merge(lanes, this.#stream)
  }

  /** Adds a command that serves several ranks, behind what was merged so far. */
  push(command: MergedCommand): void {
    this.#admit(command)
    this.#lanes.settleFor(command, this.#stream)
    this.#stream.push(command)
    if (this.#stream.length >= COMMAND_LIMIT || this.#uploadBytes >= UPLOAD_LIMIT) this.flush()
  }

  /** Encodes and submits all that is recorded. Results of reads arrive through their promises. */
  flush(): void {
    this.#lanes.mergeAll(this.#stream)
    const stream = this.#stream
    this.#stream = []
    this.#uploadBytes = 0
    this.#readBytes = 0
    if (stream.length > 0 && !this.#failure) this.#submit(stream)
    this.#pool.recycle()
  }

  /** From now on every pending and later request fails with `error`. */
  fail(error: RankmeshError): void {
    this.#failure ??= error
    this.#lanes.mergeAll([])
    this.#stream = []
    this.#reject(error)
    this.#encoder.dispose()
  }

  /** Something recorded so far went wrong: who waits for bytes is told, or the next who asks. Later requests may succeed. */
  fault(error: RankmeshError): void {
    if (this.#readers.size > 0) this.#reject(error)
    else this.#owed ??= error
  }

  #admit(command: Command | MergedCommand): void {
    if (this.#failure) throw this.#failure
    if (command.kind === 'upload') this.#uploadBytes += command.bytes.byteLength
    if (command.kind !== 'read') return
    const bytes = paddedBytes(command.from)
    if (this.#readBytes + bytes > this.#device.limits.maxBufferSize) this.flush()
    this.#readBytes += bytes
    for (const reader of command.readers) this.#readers.add(reader)
  }

  #askFlush(): void {
    if (this.#flushAsked) return
    this.#flushAsked = true
    this.#afterTurn(() => {
      this.#flushAsked = false
      this.flush()
    })
  }

  #submit(stream: readonly MergedCommand[]): void {
    const device = this.#device
    const reads = stream.filter((command) => command.kind === 'read')
    device.pushErrorScope('out-of-memory')
    device.pushErrorScope('validation')
    let staging: GPUBuffer | null = null
    let thrown: unknown
    try {
      staging = this.#encoder.submit(stream, reads)
    } catch (cause) {
      thrown = cause
    }
    const scopes = [device.popErrorScope(), device.popErrorScope()]
    const check = async (): Promise<void> => {
      const [validation, memory] = await Promise.all(scopes)
      if (memory) throw new OutOfMemoryError(`The device ran out of memory: ${memory.message}`)
      if (validation) throw new DeviceError(`The device refused a command: ${validation.message}`)
      if (thrown) throw thrown
    }
    this.#settle(reads, staging, check)
  }

  /** Waits for what a submit brings; never rejects, since nobody awaits it. */
  async #settle(reads: readonly Read[], staging: GPUBuffer | null, check: () => Promise<void>): Promise<void> {
    const readers = reads.flatMap((read) => read.readers)
    try {
      if (staging) await this.#encoder.deliver(reads, staging, () => this.#checkAll(check))
      else await check()
    } catch (cause) {
      const told = readers.length > 0 && !readers.some((reader) => this.#readers.has(reader))
      if (!told) this.fault(this.#failure ?? asError(cause))
    }
    for (const reader of readers) this.#readers.delete(reader)
  }

  async #checkAll(check: () => Promise<void>): Promise<void> {
    await check()
    const owed = this.#owed
    this.#owed = null
    if (owed) throw owed
  }

  #reject(error: RankmeshError): void {
    for (const reader of this.#readers) reader.reject(error)
    this.#readers.clear()
  }
}

function asError(cause: unknown): RankmeshError {
  if (cause instanceof OutOfMemoryError || cause instanceof DeviceError) return cause
  if (cause instanceof RangeError) return new OutOfMemoryError(`The device ran out of memory: ${cause.message}`, { cause })
  const message = cause instanceof Error ? cause.message || cause.name : String(cause)
  return new DeviceError(`Reading from the device failed: ${message}`, { cause })
}
