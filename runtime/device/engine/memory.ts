// Memory of a device with an engine: blocks that are used again after they are freed, and who has yet to read or write them.
import { DeviceError, OutOfMemoryError } from '../../core/errors.ts'
import { type Storage, UseCount } from '../../core/storage.ts'
import { sizeClass } from '../size-class.ts'
import type { Progress } from './queue.ts'

const LINE = 64

/** Where a Memory gets its blocks. */
export interface BlockSource {
  allocate(byteLength: number): { id: number; buffer: ArrayBuffer | null }
  free(id: number, buffer: ArrayBuffer | null): void
}

/** A piece of memory, and the commands that have used it: one queue may write what others use only behind them. */
export class Block {
  readonly id: number
  readonly byteLength: number
  /** Null where JavaScript does not see the memory. */
  readonly bytes: Uint8Array<ArrayBuffer> | null
  /** Who wrote it last, and how many commands that queue had recorded then. */
  writer: Progress | null = null
  written = 0
  /** The same of who has read it since, the first `readings` of these lists, whose memory stays: there are many reads and few readers. */
  readonly readers: Progress[] = []
  readonly read: number[] = []
  readings = 0

  constructor(id: number, byteLength: number, buffer: ArrayBuffer | null) {
    this.id = id
    this.byteLength = byteLength
    this.bytes = buffer && new Uint8Array(buffer)
  }

  /** No command that has yet to run uses it. */
  get idle(): boolean {
    if (this.writer && this.written > this.writer.completed) return false
    for (let i = 0; i < this.readings; i++) if ((this.read[i] as number) > (this.readers[i] as Progress).completed) return false
    return true
  }

  /** Hands over what was recorded, so that the block's number is of no more use to it. */
  flush(): void {
    this.writer?.queue?.flush()
    for (let i = 0; i < this.readings; i++) this.readers[i]?.queue?.flush()
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
  readonly #source: BlockSource
  /** What errors call it. */
  readonly device: string
  readonly #keepBytes: number
  readonly #all = new Set<Block>()
  /** Freed blocks of each rank, by size. */
  readonly #kept = new Set<Map<number, Block[]>>()
  #keptBytes = 0
  /** Blocks that somebody holds: the figure leak tests compare. */
  liveBlocks = 0

  /** Freed bytes are kept for later use; beyond `keepBytes`, or where there is no other memory left, blocks are given back. */
  constructor(source: BlockSource, device: string, keepBytes: number) {
    this.#source = source
    this.device = device
    this.#keepBytes = keepBytes
  }

  /**
   * `kept` are the freed blocks of the rank that asks, by size: its own are used again without waiting for other ranks. With `idle`, no command
   * that has yet to run uses the block.
   */
  allocate(byteLength: number, kept: Map<number, Block[]>, idle = false): EngineStorage {
    const size = sizeClass(byteLength, LINE)
    const block = this.#reuse(size, kept, idle) ?? this.#create(size)
    return this.#hold(block, byteLength, () => this.#giveBack(block, kept))
  }

  /** A block that came in another way than by `allocate`, as its own; it is given back and not kept. */
  adopt(id: number, byteLength: number): EngineStorage {
    const block = new Block(id, byteLength, null)
    this.#all.add(block)
    return this.#hold(block, byteLength, () => {
      this.liveBlocks--
      this.#free(block)
    })
  }

  /** Gives freed blocks back, which nobody will ask for again. */
  drop(kept: Map<number, Block[]>): void {
    for (const [size, blocks] of kept) {
      for (const block of blocks) this.#free(block)
      this.#keptBytes -= size * blocks.length
    }
    kept.clear()
  }

  /** Gives all blocks back, also those that somebody still holds. */
  dispose(): void {
    for (const block of this.#all) this.#source.free(block.id, block.bytes?.buffer ?? null)
    this.#all.clear()
  }

  #hold(block: Block, byteLength: number, free: () => void): EngineStorage {
    this.liveBlocks++
    return new EngineStorage(this, block, byteLength, free)
  }

  #reuse(size: number, kept: Map<number, Block[]>, idle: boolean): Block | undefined {
    const list = kept.get(size) ?? []
    const at = idle ? list.findIndex((block) => block.idle) : list.length - 1
    const [block] = at < 0 ? [] : list.splice(at, 1)
    if (block) this.#keptBytes -= size
    return block
  }

  #create(size: number): Block {
    let made: ReturnType<BlockSource['allocate']>
    try {
      made = this.#keptBytes > 0 ? this.#allocateOrTrim(size) : this.#source.allocate(size)
    } catch (cause) {
      if (!(cause instanceof RangeError)) throw new DeviceError(`${this.device} has failed: ${(cause as Error).message}`, { cause })
      throw new OutOfMemoryError(`${this.device} could not allocate ${size} bytes; split the model over more ranks or free tensors first`, {
        cause,
      })
    }
    const block = new Block(made.id, size, made.buffer)
    this.#all.add(block)
    return block
  }

  #allocateOrTrim(size: number): ReturnType<BlockSource['allocate']> {
    try {
      return this.#source.allocate(size)
    } catch {
      for (const kept of this.#kept) {
        for (const block of [...kept.values()].flat()) this.#free(block)
        kept.clear()
      }
      this.#keptBytes = 0
      return this.#source.allocate(size)
    }
  }

  #giveBack(block: Block, kept: Map<number, Block[]>): void {
    this.liveBlocks--
    if (!this.#all.has(block)) return
    const size = block.byteLength
    if (this.#keptBytes + size > this.#keepBytes) {
      this.#free(block)
      return
    }
    this.#keptBytes += size
    this.#kept.add(kept)
    const list = kept.get(size)
    if (list) list.push(block)
    else kept.set(size, [block])
  }

  /** Commands that have yet to run keep the memory itself. */
  #free(block: Block): void {
    if (!this.#all.delete(block)) return
    block.flush()
    this.#source.free(block.id, block.bytes?.buffer ?? null)
  }
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
