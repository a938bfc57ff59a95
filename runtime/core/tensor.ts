// Tensor: contiguous, row-major, of fixed shape and dtype, its bytes on one device.
import { blockLength, type DType, decodeOwned, dtypeSize, encode, type TensorData } from './dtype.ts'
import { ArgumentError, DeviceError, describe, ShapeError } from './errors.ts'
import { checkShape, formatShape, resolveDim, type Shape, sizeOf, splitAt } from './shape.ts'
import { hostMemory, type Storage, type TensorDevice } from './storage.ts'

export interface TensorOptions {
  /** Defaults to float32, or to the element type of the typed array given to `from`. */
  dtype?: DType
  /** Defaults to host memory (`cpu`). */
  device?: TensorDevice
}

type Nested = number | bigint | readonly Nested[]

/**
 * A handle on `sizeOf(shape)` elements of `storage` from `byteOffset` on. Handles are counted: `dispose()` gives one back,
 * and the memory is free when the last handle on it is gone. Using a disposed tensor throws ERR_DEVICE.
 */
export class Tensor implements Disposable {
  readonly device: TensorDevice
  readonly dtype: DType
  readonly shape: Shape
  readonly byteOffset: number
  /** Elements. */
  readonly size: number
  readonly byteLength: number
  readonly #storage: Storage
  #disposed = false

  /** For devices and collectives: takes over one count of `storage`. Programs use `Tensor.from`, `full`, `zeros`, `empty`, `arange`. */
  constructor(device: TensorDevice, storage: Storage, shape: Shape, dtype: DType, byteOffset = 0) {
    checkShape(shape)
    const block = blockLength(dtype)
    if (block > 1 && (shape.at(-1) ?? 1) % block !== 0)
      throw new ShapeError(`Expected a last dimension of whole blocks of ${block} for ${dtype} but received ${formatShape(shape)}`)
    this.device = device
    this.dtype = dtype
    this.shape = Object.freeze([...shape])
    this.byteOffset = byteOffset
    this.size = sizeOf(shape)
    this.byteLength = this.size * dtypeSize(dtype)
    this.#storage = storage
    if (byteOffset + this.byteLength > storage.byteLength) {
      throw new ShapeError(
        `Tensor ${formatShape(shape)} of ${dtype} at byte ${byteOffset} does not fit in its storage of ${storage.byteLength} bytes`,
      )
    }
  }

  /** Memory with whatever it held before. */
  static empty(shape: Shape, { dtype = 'float32', device = hostMemory }: TensorOptions = {}): Tensor {
    checkShape(shape)
    return new Tensor(device, device.allocate(sizeOf(shape) * dtypeSize(dtype)), shape, dtype)
  }

  static full(shape: Shape, value: number | bigint, options: TensorOptions = {}): Tensor {
    const { dtype = 'float32' } = options
    checkShape(shape)
    const one = encode(dtype, dtype === 'float4_e2m1x2' ? [Number(value), Number(value)] : ([value] as number[]))
    const bytes = new Uint8Array(sizeOf(shape) * one.length)
    for (let i = 0; i < bytes.length; i += one.length) bytes.set(one, i)
    return Tensor.fromBytes(bytes, shape, dtype, options.device)
  }

  static zeros(shape: Shape, options: TensorOptions = {}): Tensor {
    const dtype = options.dtype ?? 'float32'
    checkShape(shape)
    return Tensor.fromBytes(new Uint8Array(sizeOf(shape) * dtypeSize(dtype)), shape, dtype, options.device)
  }

  /** 0, 1, 2, ... n-1. */
  static arange(n: number, options: TensorOptions = {}): Tensor {
    return Tensor.from(
      Array.from({ length: n }, (_, i) => i),
      options,
    )
  }

  /**
   * A tensor from numbers: nested arrays give their own shape, a typed array is flat unless `shape` is given.
   * @throws ERR_SHAPE where rows differ in length or `shape` does not hold the values.
   */
  static from(values: Nested | ArrayBufferView, options: TensorOptions & { shape?: Shape } = {}): Tensor {
    const own = shapeOf(values)
    const dtype = options.dtype ?? dtypeOf(values)
    const flat = ArrayBuffer.isView(values) ? (values as unknown as ArrayLike<number>) : flatten(values)
    const shape = options.shape ?? own
    const count = dtype === 'float4_e2m1x2' ? flat.length / 2 : flat.length
    checkShape(shape)
    if (options.shape === undefined && dtype === 'float4_e2m1x2') {
      return Tensor.fromBytes(encode(dtype, flat), [...own.slice(0, -1), (own.at(-1) ?? 0) / 2], dtype, options.device)
    }
    if (sizeOf(shape) !== count) {
      throw new ShapeError(`Expected ${sizeOf(shape)} values for shape ${formatShape(shape)} but received ${flat.length}`)
    }
    return Tensor.fromBytes(encode(dtype, flat), shape, dtype, options.device)
  }

  /** A tensor from raw little-endian bytes; nothing is converted. */
  static fromBytes(bytes: Uint8Array, shape: Shape, dtype: DType, device: TensorDevice = hostMemory): Tensor {
    const tensor = Tensor.empty(shape, { dtype, device })
    if (bytes.byteLength !== tensor.byteLength) {
      tensor.dispose()
      throw new ShapeError(`Expected ${tensor.byteLength} bytes for ${formatShape(shape)} of ${dtype} but received ${bytes.byteLength}`)
    }
    if (bytes.byteLength > 0) device.write(tensor.storage, 0, bytes)
    return tensor
  }

  get storage(): Storage {
    if (this.#disposed) throw new DeviceError(`This tensor ${formatShape(this.shape)} was disposed; use it before dispose()`)
    return this.#storage
  }

  get disposed(): boolean {
    return this.#disposed
  }

  /** The same elements under another shape of the same size; one dimension may be -1. A new handle: dispose it too. */
  reshape(shape: Shape): Tensor {
    const holes = shape.filter((n) => n === -1).length
    const known = sizeOf(shape.filter((n) => n !== -1))
    const whole = holes === 1 && known > 0 ? shape.map((n) => (n === -1 ? this.size / known : n)) : shape
    if (holes > 1 || !whole.every((n) => Number.isInteger(n) && n >= 0) || sizeOf(whole) !== this.size) {
      throw new ShapeError(
        `Cannot reshape ${formatShape(this.shape)} to ${formatShape(shape)}: the number of elements must stay ${this.size}`,
      )
    }
    return this.view(whole, this.byteOffset)
  }

  /**
   * Elements [start, start + length) of `dim`, as a view; allowed where they stay contiguous, that is where all dimensions
   * before `dim` have length 1. A new handle: dispose it too.
   */
  narrow(dim: number, start: number, length: number): Tensor {
    const at = resolveDim(dim, this.shape.length)
    const { outer, length: have, inner } = splitAt(this.shape, at)
    if (!Number.isInteger(start) || !Number.isInteger(length) || start < 0 || length < 0 || start + length > have) {
      throw new ShapeError(`Expected a range inside [0, ${have}] for narrow but received start ${start}, length ${length}`)
    }
    if (outer !== 1 && length !== have) {
      throw new ShapeError(
        `narrow(${dim}) of ${formatShape(this.shape)} would not be contiguous; only leading dimensions can be narrowed without a copy`,
      )
    }
    const shape = this.shape.map((n, i) => (i === at ? length : n))
    return this.view(shape, this.byteOffset + start * inner * dtypeSize(this.dtype))
  }

  /** Another handle on the same elements. */
  share(): Tensor {
    return this.view(this.shape, this.byteOffset)
  }

  /** Raw little-endian bytes; waits for the device. */
  async bytes(): Promise<Uint8Array<ArrayBuffer>> {
    if (this.byteLength === 0) return new Uint8Array(0)
    return this.device.read(this.storage, this.byteOffset, this.byteLength)
  }

  /** The elements as numbers: Float32Array for every float dtype, else the integer typed array. Waits for the device. */
  async data(): Promise<TensorData> {
    return decodeOwned(this.dtype, await this.bytes())
  }

  /** The single element of a tensor of size 1. */
  async item(): Promise<number | bigint> {
    if (this.size !== 1) throw new ShapeError(`item() needs a tensor of one element; this one is ${formatShape(this.shape)}`)
    return (await this.data())[0] as number | bigint
  }

  /** Overwrites all elements, converted to this dtype. */
  set(values: ArrayLike<number> | ArrayLike<bigint>): void {
    this.setBytes(encode(this.dtype, values))
  }

  /** Overwrites all elements with raw little-endian bytes. */
  setBytes(bytes: Uint8Array): void {
    if (bytes.byteLength !== this.byteLength) {
      throw new ShapeError(
        `Expected ${this.byteLength} bytes for ${formatShape(this.shape)} of ${this.dtype} but received ${bytes.byteLength}`,
      )
    }
    if (bytes.byteLength > 0) this.device.write(this.storage, this.byteOffset, bytes)
  }

  /** A copy on another device, through host memory; the same device gives another handle. */
  async to(device: TensorDevice): Promise<Tensor> {
    if (device === this.device) return this.share()
    return Tensor.fromBytes(await this.bytes(), this.shape, this.dtype, device)
  }

  /** Gives this handle back. Doing so twice is no error. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#storage.release()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  toString(): string {
    return `Tensor(${formatShape(this.shape)}, ${this.dtype}, ${this.device.name})`
  }

  private view(shape: Shape, byteOffset: number): Tensor {
    this.storage.retain()
    return new Tensor(this.device, this.#storage, shape, this.dtype, byteOffset)
  }
}

function shapeOf(values: Nested | ArrayBufferView): number[] {
  if (ArrayBuffer.isView(values)) return [(values as unknown as ArrayLike<number>).length]
  return Array.isArray(values) ? [values.length, ...(values.length > 0 ? shapeOf(values[0] as Nested) : [])] : []
}

function flatten(values: Nested): number[] {
  const flat: (number | bigint)[] = []
  const visit = (value: Nested, shape: readonly number[]): void => {
    const isList = Array.isArray(value)
    if (isList !== shape.length > 0 || (isList && value.length !== shape[0])) {
      throw new ShapeError(`Expected nested arrays of equal lengths but received ${describe(value)}`)
    }
    if (isList) for (const inner of value as readonly Nested[]) visit(inner, shape.slice(1))
    else flat.push(value as number | bigint)
  }
  visit(values, shapeOf(values))
  return flat as number[]
}

function dtypeOf(values: Nested | ArrayBufferView): DType {
  if (values instanceof Int8Array) return 'int8'
  if (values instanceof Uint8Array || values instanceof Uint8ClampedArray) return 'uint8'
  if (values instanceof Int32Array) return 'int32'
  if (values instanceof Uint32Array) return 'uint32'
  if (values instanceof BigInt64Array) return 'int64'
  if (values instanceof BigUint64Array) return 'uint64'
  if (values instanceof DataView || values instanceof Int16Array || values instanceof Uint16Array) {
    throw new ArgumentError(
      `Expected numbers for Tensor.from but received ${describe(values)}; use Tensor.fromBytes with a dtype for raw bits`,
    )
  }
  return 'float32'
}
