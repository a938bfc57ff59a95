// What a tensor needs of the place its bytes live in: the lowest seam between tensors and devices, and host memory as its simplest case.
import { DeviceError } from './errors.ts'

/** A block of memory of one device, counted by the tensors that use it. */
export interface Storage {
  readonly byteLength: number
  /** False once the last holder has let go. */
  readonly alive: boolean
  retain(): void
  release(): void
}

/** The part of a device that tensors rely on. Reads and writes of one device happen in the order of the calls. */
export interface TensorDevice {
  /** As people know it: `cpu`, `webgpu:0`. */
  readonly name: string
  readonly kind: 'cpu' | 'webgpu' | 'cuda'
  allocate(byteLength: number): Storage
  /** Copies `bytes` before it returns. */
  write(storage: Storage, byteOffset: number, bytes: Uint8Array): void
  /** Waits for the device; the result is the caller's own. */
  read(storage: Storage, byteOffset: number, byteLength: number): Promise<Uint8Array<ArrayBuffer>>
}

/** A use count: `free` runs once, when the last holder releases. */
export class UseCount {
  #count = 1
  readonly #free: () => void

  constructor(free: () => void) {
    this.#free = free
  }

  get alive(): boolean {
    return this.#count > 0
  }

  retain(): void {
    if (this.#count === 0) throw new DeviceError('Storage was used after it was freed; keep a tensor of it undisposed')
    this.#count++
  }

  release(): void {
    if (this.#count === 0) throw new DeviceError('Storage was released more often than it was retained')
    if (--this.#count === 0) this.#free()
  }
}

class HostStorage extends UseCount implements Storage {
  readonly bytes: Uint8Array<ArrayBuffer>

  constructor(byteLength: number) {
    super(() => {})
    this.bytes = new Uint8Array(byteLength)
  }

  get byteLength(): number {
    return this.bytes.byteLength
  }
}

/** Plain memory of the JavaScript thread: where tensors live that name no device. It stores, it does not compute. */
export const hostMemory: TensorDevice = {
  name: 'cpu',
  kind: 'cpu',
  allocate: (byteLength) => new HostStorage(byteLength),
  write: (storage, byteOffset, bytes) => hostBytes(storage).set(bytes, byteOffset),
  read: async (storage, byteOffset, byteLength) => hostBytes(storage).slice(byteOffset, byteOffset + byteLength),
}

function hostBytes(storage: Storage): Uint8Array<ArrayBuffer> {
  if (!(storage instanceof HostStorage)) throw new DeviceError('A storage of another device was given to host memory')
  return storage.bytes
}
