// WebGpuDevice: one rank's view of a GPU. Ranks that share the GPU share its memory and kernels; each records in a lane of its own.
import type { DType } from '../../core/dtype.ts'
import { DeviceError, type RankmeshError } from '../../core/errors.ts'
import type { Storage, TensorDevice } from '../../core/storage.ts'
import type { Tensor } from '../../core/tensor.ts'
import { argmaxBy } from '../argmax.ts'
import type { Attention, Device, KernelTime, Product, RmsNorm, RopeAppend, SiluMul, TreeProduct } from '../device.ts'
import { Gpu, openGpu } from './gpu.ts'
import { copyBytes, laneSink, type Sink } from './launch.ts'
import * as ops from './ops.ts'
import type { AdapterChoice, Platform } from './platform.ts'
import { type GpuStorage, gpuStorage, writableStorage } from './pool.ts'
import { Profiler } from './profiler.ts'
import type { DeviceStats } from './recorder.ts'
import { matmulTree } from './tree.ts'

export class WebGpuDevice implements Device {
  readonly kind = 'webgpu'
  readonly name: string
  readonly gpu: Gpu
  /** The queue this view records into. */
  readonly lane: number
  readonly sink: Sink

  constructor(gpu: Gpu, name: string) {
    this.gpu = gpu
    this.name = name
    this.lane = gpu.recorder.addLane()
    this.sink = laneSink(gpu, this.lane)
  }

  /** Opens an adapter's device. @throws ERR_BACKEND_UNAVAILABLE with what was tried. */
  static async open(platform: Platform, choice: AdapterChoice = {}, name = 'webgpu:0'): Promise<WebGpuDevice> {
    return new WebGpuDevice(await openGpu(platform, choice), name)
  }

  /** A view on a GPUDevice that the program made itself and goes on owning. Its limits bound what can be allocated. */
  static adopt(platform: Platform, device: GPUDevice, options: { name?: string; software?: boolean } = {}): WebGpuDevice {
    const { name = 'webgpu:0', software = false } = options
    const info = { adapter: device.label || 'injected device', software, features: [...device.features] }
    return new WebGpuDevice(new Gpu(device, info, platform), name)
  }

  /** Another rank's view of the same GPU. */
  view(): WebGpuDevice {
    return new WebGpuDevice(this.gpu, this.name)
  }

  get description(): string {
    return this.gpu.info.adapter
  }

  get software(): boolean {
    return this.gpu.info.software
  }

  get failure(): RankmeshError | null {
    return this.gpu.failure
  }

  get stats(): DeviceStats {
    return { ...this.gpu.recorder.stats }
  }

  allocate(byteLength: number): Storage {
    if (this.failure) throw this.failure
    return this.gpu.pool.allocate(byteLength)
  }

  write(storage: Storage, byteOffset: number, bytes: Uint8Array): void {
    if (this.failure) throw this.failure
    const { buffer, offset, byteLength } = writableStorage(this.gpu.pool, storage)
    if (byteOffset + bytes.byteLength > byteLength)
      throw new DeviceError(`A write of ${bytes.byteLength} bytes at ${byteOffset} passes the storage's end`)
    if (bytes.byteLength === 0) return
    const to = { buffer, offset: offset + byteOffset, byteLength: bytes.byteLength }
    const atEnd = byteOffset + bytes.byteLength === byteLength
    const words = to.offset % 4 === 0 && (bytes.byteLength % 4 === 0 || atEnd)
    const padded = new Uint8Array(Math.ceil(bytes.byteLength / 4) * 4)
    padded.set(bytes)
    if (words) {
      this.sink.record({ kind: 'upload', to, bytes: padded })
      return
    }
    const scratch = this.gpu.pool.allocate(padded.byteLength)
    const from = { buffer: scratch.buffer, offset: scratch.offset, byteLength: padded.byteLength }
    this.sink.record({ kind: 'upload', to: from, bytes: padded })
    copyBytes(this.sink, from, to, bytes.byteLength)
    scratch.release()
  }

  async read(storage: Storage, byteOffset: number, byteLength: number): Promise<Uint8Array<ArrayBuffer>> {
    const { buffer, offset } = this.#storage(storage)
    return this.gpu.recorder.read(this.lane, { buffer, offset: offset + byteOffset, byteLength })
  }

  embedding(ids: Tensor, table: Tensor, options?: { first?: number; dtype?: DType; out?: Tensor }): Tensor {
    return ops.embedding(this, ids, table, options)
  }

  matmul(x: Tensor, w: Tensor, options?: Product): Tensor {
    return ops.matmul(this, x, w, options)
  }

  matmulTree(x: Tensor, w: Tensor, options: TreeProduct): Tensor {
    return matmulTree(this, x, w, options)
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

  async profile(work: () => Promise<void>): Promise<KernelTime[] | null> {
    const { device, recorder } = this.gpu
    if (!device.features.has('timestamp-query') || recorder.profiler) {
      await work()
      return null
    }
    await this.sync()
    const profiler = new Profiler(device)
    recorder.profiler = profiler
    try {
      await work()
      await this.sync()
      return await profiler.finish()
    } finally {
      recorder.profiler = null
    }
  }

  async sync(): Promise<void> {
    const storage = this.allocate(4)
    try {
      await this.read(storage, 0, 4)
    } finally {
      storage.release()
    }
  }

  /** Ends the GPU for every view of it: pending work fails with ERR_DEVICE, its memory is given back. */
  dispose(): void {
    this.gpu.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #storage(storage: Storage): GpuStorage {
    if (this.failure) throw this.failure
    return gpuStorage(this.gpu.pool, storage)
  }
}

/** True where two devices are views of one GPU, and so of one memory. */
export function sameMemory(a: TensorDevice, b: TensorDevice): boolean {
  return a === b || (a instanceof WebGpuDevice && b instanceof WebGpuDevice && a.gpu === b.gpu)
}
