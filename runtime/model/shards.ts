// Reads a rank's part of a model's weights into device memory: slices of the files go straight to slices of symmetric buffers, or, where ranks
// hold parts of different sizes, to memory of the rank's own.
import type { Communicator } from '../comm/communicator.ts'
import { BLOCK_DTYPES, type BlockDType, type DType, decode } from '../core/dtype.ts'
import type { Shape } from '../core/shape.ts'
import type { TensorDevice } from '../core/storage.ts'
import { Tensor } from '../core/tensor.ts'
import type { Span } from '../scheduler/plan.ts'
import type { TensorBytes, Weights } from './named-tensors.ts'

/** Types a vector may be stored in, which becomes float32. */
const VECTOR_TYPES: readonly DType[] = ['float32', 'bfloat16', 'float16']
/** Types a matrix may be stored in; it stays in its own on the device. */
export const MATRIX_TYPES: readonly DType[] = [...VECTOR_TYPES, ...(Object.keys(BLOCK_DTYPES) as BlockDType[])]

/** A part of a named tensor: items of one dimension. */
export interface Part extends Span {
  name: string
  /** The whole tensor's shape in the file. */
  shape: Shape
}

/** `alike`: all ranks' parts have one shape, so that they are slices of one buffer. Ranks agree on it. */
export class ShardReader {
  readonly #comm: Communicator
  readonly #device: TensorDevice
  readonly #weights: Weights
  readonly #onBytes: (bytes: number) => void
  /** What was loaded, for `dispose`. */
  readonly tensors: Tensor[] = []

  constructor(
    { comm, device }: { comm: Communicator; device: TensorDevice },
    weights: Weights,
    onBytes: (bytes: number) => void = () => {},
  ) {
    this.#comm = comm
    this.#device = device
    this.#weights = weights
    this.#onBytes = onBytes
  }

  /** Rows of several tensors stacked, in one tensor for each run of neighbours of one type: [sum of their counts, columns] each. */
  async rows(parts: readonly Part[], alike: boolean): Promise<Tensor[]> {
    const runs: { dtype: DType; parts: Part[] }[] = []
    for (const part of parts) {
      const { dtype } = await this.#weights.info(part.name, { dtype: MATRIX_TYPES, shape: part.shape })
      const last = runs.at(-1)
      if (last?.dtype === dtype) last.parts.push(part)
      else runs.push({ dtype, parts: [part] })
    }
    const tensors: Tensor[] = []
    for (const { dtype, parts } of runs) tensors.push(await this.#stacked(parts, dtype, alike))
    return tensors
  }

  async #stacked(parts: readonly Part[], dtype: DType, alike: boolean): Promise<Tensor> {
    const tensor = await this.allocate([countOf(parts), parts[0]?.shape[1] as number], dtype, alike)
    let at = 0
    for (const { name, shape, start, count } of parts) {
      if (count > 0) this.#fill(tensor, at, count, (await this.#weights.readSlice(name, 0, start, count, { dtype, shape })).bytes)
      at += count
    }
    return tensor
  }

  /** Columns of one tensor, whole blocks of its type: [rows, count]. */
  async columns({ name, shape, start, count }: Part, alike: boolean): Promise<Tensor> {
    const { dtype } = await this.#weights.info(name, { dtype: MATRIX_TYPES, shape })
    const tensor = await this.allocate([shape[0] as number, count], dtype, alike)
    if (count > 0) this.#fill(tensor, 0, shape[0] as number, (await this.#weights.readSlice(name, 1, start, count, { dtype, shape })).bytes)
    return tensor
  }

  /** Elements of several vectors, one after the other, as float32. */
  async vector(parts: readonly Part[], alike: boolean): Promise<Tensor> {
    const tensor = await this.allocate([countOf(parts)], 'float32', alike)
    let at = 0
    for (const { name, shape, start, count } of parts) {
      if (count === 0) continue
      const slice = await this.#weights.readSlice(name, 0, start, count, { dtype: VECTOR_TYPES, shape })
      this.#fill(tensor, at, count, toFloat32(slice))
      at += count
    }
    return tensor
  }

  /** A whole vector as float32, stored once on each device. */
  async sharedVector(name: string, shape: Shape): Promise<Tensor> {
    return this.shared(shape, async () => toFloat32(await this.#weights.read(name, { dtype: VECTOR_TYPES, shape })))
  }

  /** A float32 tensor that all ranks of a device hold; one of them makes its bytes. */
  async shared(shape: Shape, make: () => Promise<Uint8Array> | Uint8Array): Promise<Tensor> {
    const tensor = await this.#keep(this.#comm.allocate(shape, { shared: true, timeoutMs: LOAD_TIMEOUT_MS }))
    if (this.#comm.deviceRank === 0) tensor.setBytes(await make())
    return tensor
  }

  /** Memory with whatever it held before; collective where ranks are alike. */
  async allocate(shape: Shape, dtype: DType, alike: boolean): Promise<Tensor> {
    if (!alike) return this.#keep(Tensor.empty(shape, { dtype, device: this.#device }))
    return this.#keep(this.#comm.allocate(shape, { dtype, timeoutMs: LOAD_TIMEOUT_MS }))
  }

  async #keep(made: Tensor | Promise<Tensor>): Promise<Tensor> {
    const tensor = await made
    this.tensors.push(tensor)
    return tensor
  }

  #fill(tensor: Tensor, row: number, rows: number, bytes: Uint8Array): void {
    using view = tensor.narrow(0, row, rows)
    view.setBytes(bytes)
    this.#onBytes(bytes.byteLength)
  }
}

/** Ranks wait for the slowest reader, which may have gigabytes to read. */
export const LOAD_TIMEOUT_MS: number = 30 * 60_000

function countOf(parts: readonly Part[]): number {
  return parts.reduce((n, { count }) => n + count, 0)
}

function toFloat32({ dtype, bytes }: TensorBytes): Uint8Array {
  return dtype === 'float32' ? bytes : new Uint8Array((decode(dtype, bytes) as Float32Array<ArrayBuffer>).buffer)
}
