// Memory of a device with an engine: blocks that are used again after they are freed, and who has yet to read or write them.
import type { Engine } from '../../core/addon.ts'
import { DeviceError, OutOfMemoryError } from '../../core/errors.ts'
import { roundUp } from '../../core/shape.ts'
import { type Storage, UseCount } from '../../core/storage.ts'
import type { Progress } from './queue.ts'

/** Freed bytes kept for later use; beyond this blocks are given back. */
const KEEP_BYTES = 512 * 2 ** 20
const LINE = 64

/** A piece of memory, and the commands that have used it: one queue may write what others use only behind them. */
export class Block {
  readonly id: number
  readonly bytes: Uint8Array<ArrayBuffer>
  /** Who wrote it last, and how many commands that queue had recorded then. */
  writer: Progress | null = null
  written = 0
  /** The same of who has read it since, the first `readings` of these lists, whose memory stays: there are many reads and few readers. */
  readonly readers: Progress[] = []
  readonly read: number[] = []
  readings = 0

  constructor(id: number, buffer: ArrayBuffer) {
    this.id = id
    this.bytes = new Uint8Array(buffer)
  }

  /** No command that has yet to run uses it. */
  get idle(): boolean {
    if (this.writer && this.written > this.writer.completed) return false
    for (let i = 0; i < this.readings; i++) if ((this.read[i] as number) > (this.readers[i] as Progress).completed) return false
    return true
  }

  noteWrite(writer: Progress, epoch: number): void {
    this.writer = writer
    this.written = epoch
    this.readings = 0
  }

  noteRead(reader: Progress, epoch: number): void {
    let at = 0
    while (at < this.readings && this.readers[at] !== reader) at++
    if (at === this.readings) this.readings++
    this.readers[at] = reader
    this.read[at] = epoch
  }
}

/** A tensor's bytes: a block, from its beginning. */
export class EngineStorage extends UseCount implements Storage {
  readonly memory: Memory
  readonly block: Block
  readonly byteLength: number
  /** Set on memory that several ranks hold as their own, such as a collective's result: nobody may write it. */
  readOnly = false

  constructor(memory: Memory, block: Block, byteLength: number, free: () => void) {
    super(free)
    this.memory = memory
    this.block = block
    this.byteLength = byteLength
  }
}

export class Memory {
  readonly #engine: Engine
  /** What errors call it. */
  readonly device: string
  readonly #all = new Set<Block>()
  #keptBytes = 0
  /** Blocks that somebody holds: the figure leak tests compare. */
  liveBlocks = 0

  constructor(engine: Engine, device: string) {
    this.#engine = engine
    this.device = device
  }

  /**
   * `kept` are the freed blocks of the rank that asks, by size: its own are used again without waiting for other ranks. With `idle`, no command
   * that has yet to run uses the block.
   */
  allocate(byteLength: number, kept: Map<number, Block[]>, idle = false): EngineStorage {
    const size = sizeClass(byteLength)
    const block = this.#reuse(size, kept, idle) ?? this.#create(size)
    this.liveBlocks++
    return new EngineStorage(this, block, byteLength, () => this.#giveBack(block, kept))
  }

  /** Gives all blocks back, also those that somebody still holds. */
  dispose(): void {
    for (const block of this.#all) this.#engine.free(block.id, block.bytes.buffer)
    this.#all.clear()
  }

  #reuse(size: number, kept: Map<number, Block[]>, idle: boolean): Block | undefined {
    const list = kept.get(size) ?? []
    const at = idle ? list.findIndex((block) => block.idle) : list.length - 1
    const [block] = at < 0 ? [] : list.splice(at, 1)
    if (block) this.#keptBytes -= size
    return block
  }

  #create(size: number): Block {
    try {
      const { id, buffer } = this.#engine.allocate(size)
      const block = new Block(id, buffer)
      this.#all.add(block)
      return block
    } catch (cause) {
      throw new OutOfMemoryError(`${this.device} could not allocate ${size} bytes; split the model over more ranks or free tensors first`, {
        cause,
      })
    }
  }

  #giveBack(block: Block, kept: Map<number, Block[]>): void {
    this.liveBlocks--
    if (!this.#all.has(block)) return
    const size = block.bytes.byteLength
    if (this.#keptBytes + size > KEEP_BYTES) {
      // Commands that have yet to run keep the memory itself.
      this.#all.delete(block)
      this.#engine.free(block.id, block.bytes.buffer)
      return
    }
    this.#keptBytes += size
    const list = kept.get(size)
    if (list) list.push(block)
    else kept.set(size, [block])
  }
}

/** Powers of two up to 1 MiB, then whole MiB: few classes, at most half wasted, and little on large ones. */
function sizeClass(bytes: number): number {
  const mib = 2 ** 20
  return bytes >= mib ? roundUp(bytes, mib) : Math.max(LINE, 2 ** Math.ceil(Math.log2(bytes || 1)))
}

/** The storage behind a tensor of this memory; anything else is refused. */
export function engineStorage(memory: Memory, storage: Storage): EngineStorage {
  if (!(storage instanceof EngineStorage))
    throw new DeviceError(`Expected a tensor on ${memory.device}; move it there with tensor.to(device)`)
  if (storage.memory !== memory)
    throw new DeviceError(`This tensor is on another device than ${memory.device}; move it with tensor.to(device)`)
  return storage
}

/** As `engineStorage`, for writing. */
export function writableStorage(memory: Memory, storage: Storage): EngineStorage {
  const own = engineStorage(memory, storage)
  if (own.readOnly)
    throw new DeviceError('This tensor is the result of a collective, shared by ranks of one device; copy it before writing')
  return own
}
