// GPU memory: buffers by size class, used again after they are freed, and the storages that tensors hold on them.
import { DeviceError, OutOfMemoryError } from '../../core/errors.ts'
import { roundUp } from '../../core/shape.ts'
import { type Storage, UseCount } from '../../core/storage.ts'
import { sizeClass } from '../size-class.ts'

/** Storage bindings and slices of a shared buffer begin at multiples of this. */
export const ALIGNMENT = 256

/** Freed bytes kept for later use; beyond this buffers are destroyed. */
const KEEP_BYTES = 512 * 2 ** 20
/** Freed bytes, and buffers, that may wait for the work that still uses them to be submitted. */
const LIMBO_BYTES = 256 * 2 ** 20
const LIMBO_BUFFERS = 4096

let nextId = 1

export interface PooledBuffer {
  readonly id: number
  readonly gpu: GPUBuffer
  readonly size: number
  /** The device could not allocate it: never to be used again. */
  failed: boolean
}

/** A tensor's bytes: a part of a buffer. Slices of one buffer are how ranks on one device share an operand. */
export class GpuStorage extends UseCount implements Storage {
  readonly pool: BufferPool
  readonly buffer: PooledBuffer
  readonly offset: number
  readonly byteLength: number
  /** Set on memory that several ranks hold as their own, such as a collective's result: nobody may write it. */
  readOnly = false

  constructor(pool: BufferPool, buffer: PooledBuffer, offset: number, byteLength: number, free: () => void) {
    super(free)
    this.pool = pool
    this.buffer = buffer
    this.offset = offset
    this.byteLength = byteLength
  }
}

export class BufferPool {
  readonly #device: GPUDevice
  readonly #all = new Set<PooledBuffer>()
  readonly #free = new Map<number, PooledBuffer[]>()
  readonly #limbo: PooledBuffer[] = []
  #limboBytes = 0
  #keptBytes = 0
  /** Called when a buffer is destroyed, so that nothing keeps a binding of it. */
  onDestroy: () => void = () => {}
  /** Called with the device's answer when an allocation failed. */
  onOutOfMemory: (error: OutOfMemoryError) => void = () => {}
  /** Called when much freed memory waits for work to be submitted. */
  onPressure: () => void = () => {}
  /** Buffers that somebody holds: the figure leak tests compare. */
  liveBuffers = 0
  liveBytes = 0

  constructor(device: GPUDevice) {
    this.#device = device
  }

  allocate(byteLength: number): GpuStorage {
    return this.allocateSlices(1, byteLength)[0] as GpuStorage
  }

  /** One buffer of `count` slices of at least `byteLength` bytes each, a storage per slice; it is free when all of them are. */
  allocateSlices(count: number, byteLength: number): GpuStorage[] {
    const pitch = Math.max(ALIGNMENT, roundUp(byteLength, ALIGNMENT))
    const buffer = this.#take(count * pitch)
    let held = count
    const free = (): void => {
      if (--held === 0) this.#giveBack(buffer)
    }
    return Array.from({ length: count }, (_, i) => new GpuStorage(this, buffer, i * pitch, byteLength, free))
  }

  /** Destroys all buffers, also those that somebody still holds. */
  dispose(): void {
    for (const { gpu } of this.#all) gpu.destroy()
    this.#all.clear()
    this.#free.clear()
    this.#limbo.splice(0)
    this.onDestroy()
  }

  /** To be called once all work recorded so far is submitted: only then may freed buffers serve somebody else. */
  recycle(): void {
    this.#limboBytes = 0
    for (const buffer of this.#limbo.splice(0)) {
      if (buffer.failed || this.#keptBytes + buffer.size > KEEP_BYTES) {
        this.#destroy(buffer)
        continue
      }
      this.#keptBytes += buffer.size
      const list = this.#free.get(buffer.size)
      if (list) list.push(buffer)
      else this.#free.set(buffer.size, [buffer])
    }
  }

  #take(bytes: number): PooledBuffer {
    const limit = Math.min(this.#device.limits.maxBufferSize, this.#device.limits.maxStorageBufferBindingSize)
    if (bytes > limit) {
      throw new OutOfMemoryError(
        `A buffer of ${bytes} bytes was asked for, but this device allows ${limit}; split the tensor over more ranks or devices`,
      )
    }
    if (this.#limboBytes > LIMBO_BYTES || this.#limbo.length > LIMBO_BUFFERS) this.onPressure()
    const size = Math.min(sizeClass(bytes, ALIGNMENT), limit - (limit % ALIGNMENT))
    const buffer = this.#reuse(size) ?? this.#create(size)
    this.liveBuffers++
    this.liveBytes += size
    return buffer
  }

  #reuse(size: number): PooledBuffer | undefined {
    const kept = this.#free.get(size)?.pop()
    if (!kept) return undefined
    this.#keptBytes -= size
    if (!kept.failed) return kept
    this.#destroy(kept)
    return this.#reuse(size)
  }

  #create(size: number): PooledBuffer {
    this.#device.pushErrorScope('out-of-memory')
    const gpu = this.#device.createBuffer({
      size,
      usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
      label: `rankmesh ${nextId}`,
    })
    const buffer: PooledBuffer = { id: nextId++, gpu, size, failed: false }
    this.#all.add(buffer)
    this.#device.popErrorScope().then(
      (error) => {
        if (!error) return
        buffer.failed = true
        this.onOutOfMemory(new OutOfMemoryError(`The device could not allocate ${size} bytes: ${error.message}`))
      },
      () => {}, // the device is lost, which is told elsewhere
    )
    return buffer
  }

  #giveBack(buffer: PooledBuffer): void {
    this.liveBuffers--
    this.liveBytes -= buffer.size
    this.#limbo.push(buffer)
    this.#limboBytes += buffer.size
  }

  #destroy(buffer: PooledBuffer): void {
    this.#all.delete(buffer)
    this.onDestroy()
    buffer.gpu.destroy()
  }
}

/** The GPU storage behind a tensor of this pool; anything else is refused. */
export function gpuStorage(pool: BufferPool, storage: Storage): GpuStorage {
  if (!(storage instanceof GpuStorage)) throw new DeviceError('Expected a tensor on a WebGPU device; move it there with tensor.to(device)')
  if (storage.pool !== pool) throw new DeviceError('This tensor is on another WebGPU device; move it with tensor.to(device)')
  return storage
}

/** As `gpuStorage`, for writing. */
export function writableStorage(pool: BufferPool, storage: Storage): GpuStorage {
  const own = gpuStorage(pool, storage)
  if (own.readOnly)
    throw new DeviceError('This tensor is the result of a collective, shared by ranks of one device; copy it before writing')
  return own
}
