// Device: memory, copies and the compute operations a model needs, the same on every kind of hardware.
import type { DType } from '../core/dtype.ts'
import type { RankmeshError } from '../core/errors.ts'
import type { TensorDevice } from '../core/storage.ts'
import type { Tensor } from '../core/tensor.ts'

export interface RopeAppend {
  /** Rotation table from `ropeTable`, [positions, dim / 2, 2]. */
  table: Tensor
  /** Caches [capacity, kvHeads * dim]; rows from `start` on are written. */
  keys: Tensor
  values: Tensor
  heads: number
  kvHeads: number
  dim: number
  /**
   * Position of the first token. A tensor [1], uint32, is read when the operation runs, so that a step that is recorded can be run at another
   * position; one that the caches or the table do not hold is the last one that they do. Where `comm.records` says so.
   */
  start: number | Tensor
  out?: Tensor
}

export interface Attention {
  keys: Tensor
  values: Tensor
  heads: number
  kvHeads: number
  dim: number
  /** Position of the first query; key rows up to the query's own are read. A tensor as in RopeAppend. */
  start: number | Tensor
  /** Keys a query sees, its own included; 0 or absent: all before it. */
  window?: number
  /** Defaults to 1 / sqrt(dim). */
  scale?: number
  /** See Device. */
  portable?: boolean
  out?: Tensor
}

export interface SiluMul {
  /** See Device. */
  portable?: boolean
  out?: Tensor
}

export interface RmsNorm extends SiluMul {
  /** Defaults to 1e-6. */
  eps?: number
  zeroCentered?: boolean
}

export interface TreeProduct {
  /** Elements of k in a block, a multiple of 4: part of what defines the bits. */
  block: number
  /** Index of the first block of this rank's k in the whole of k; defaults to 0. */
  first?: number
  /** k is all here: the result is the product, not the sums of subtrees. */
  whole?: boolean
  /** [outs], float32, with `whole` only. */
  bias?: Tensor | undefined
  out?: Tensor
  /** As in Product, with `whole` only. */
  column?: number
}

export interface Product {
  /** [outs], float32. */
  bias?: Tensor | undefined
  out?: Tensor
  /** `out` is wider than the product, [tokens, width]: this column of it is where the product's first one is written. */
  column?: number
  /** What x may be rounded to where the device is faster that way: it decides, and may decide by the number of tokens. See Activations. */
  activations?: Activations | undefined
}

/**
 * How coarsely a product may round its activations. `bfloat16`: each to bfloat16, and with them weights in float16 and in blocks, so that a
 * result is within 1.01 * 2^-8 * sum |x w| of the exact one. `int8`: that, or each 32 of a row to multiples of a 127th of the largest, so that a
 * result is within the sum over these of max |x| / 254 * sum |w|. Either way float32 arithmetic comes on top.
 */
export type Activations = 'bfloat16' | 'int8'

/** Time a kernel took, summed over its runs. */
export interface KernelTime {
  /** The kernel's variant, its name first. */
  kernel: string
  runs: number
  nanoseconds: number
}

/**
 * Operations are recorded in the order of the calls and run when a result is read; bad operands throw at the call (ERR_SHAPE, ERR_DTYPE,
 * ERR_DEVICE) and queue nothing. `out` receives the result where it is given, else a new tensor does; it must not be an operand unless
 * stated. Weights may be float32, bfloat16 or float16 whatever the activations are, and where this is said in blocks of q8_0, q4_0, q4_1, q4_k,
 * q5_k or q6_k, whose values are what float32 makes of them; arithmetic is in float32. `portable`: in the steps of core/portable.ts, so that the
 * bits are the same on every kind of device, as those of embedding, matmulTree, ropeAppend and add always are; slower on GPUs.
 */
export interface Device extends TensorDevice, Disposable {
  /** What runs the operations, as the adapter calls itself. */
  readonly description: string
  /** True for a CPU program behind a GPU interface: right, and slow. */
  readonly software: boolean
  /** Set once the device is lost or disposed. */
  readonly failure: RankmeshError | null

  /** Rows `ids - first` of `table` [rows, n], which may be in blocks; ids outside give zeros. ids [tokens] uint32 → [tokens, n]. */
  embedding(ids: Tensor, table: Tensor, options?: { first?: number; dtype?: DType; out?: Tensor }): Tensor
  /** x [tokens, k] times w [outs, k] transposed, plus bias [outs] (float32): → [tokens, outs] float32. w may be in blocks. */
  matmul(x: Tensor, w: Tensor, options?: Product): Tensor
  /**
   * As matmul, in the order of one fixed tree over blocks of k, so that the bits do not depend on how k is cut over ranks nor on the number of
   * tokens: → the sums of this rank's whole subtrees, [subtrees, tokens, outs], which comm.allReduce* with `tree` completes; with `whole`
   * → [tokens, outs]. k must be a multiple of 4. w may be in blocks. `out` may have any shape that is large enough.
   */
  matmulTree(x: Tensor, w: Tensor, options: TreeProduct): Tensor
  /** Rotates q and k of x [tokens, (heads + 2 kvHeads) * dim], appends k and v to the caches: → q [tokens, heads * dim]. float32. */
  ropeAppend(x: Tensor, options: RopeAppend): Tensor
  /** Causal grouped-query attention of q [tokens, heads * dim] over a cache: → [tokens, heads * dim]. float32. */
  attention(q: Tensor, options: Attention): Tensor
  /** silu(gate) * up for x [tokens, 2n] = gate | up: → [tokens, n]. */
  siluMul(x: Tensor, options?: SiluMul): Tensor
  /** x * rsqrt(mean(x^2) + eps) * weight per row of the last dimension, weight of x's dtype; `zeroCentered`: weight holds w - 1. */
  rmsNorm(x: Tensor, weight: Tensor, options?: RmsNorm): Tensor
  /** a + b of one shape and dtype. */
  add(a: Tensor, b: Tensor, options?: { out?: Tensor }): Tensor
  /** Softmax over the last dimension. float32. */
  softmax(x: Tensor, options?: { out?: Tensor }): Tensor
  /** Index of the largest value of each row, the lowest of equals: [..., n] float32 → [...] uint32. */
  argmax(x: Tensor, options?: { out?: Tensor }): Tensor
  /** The k largest of each row, descending, equals by ascending index: [..., n] float32 → two tensors [..., k]. */
  topK(x: Tensor, k: number): { values: Tensor; indices: Tensor }
  /** The same values in another float dtype, rounded to nearest even. */
  cast(x: Tensor, dtype: DType, options?: { out?: Tensor }): Tensor
  /** Copies all elements of `from` into `to`: same size and dtype, any alignment. */
  copy(from: Tensor, to: Tensor): void
  /** Runs `work` with every kernel timed, one after the other; null where the device cannot time kernels. Slows the work down. */
  profile(work: () => Promise<void>): Promise<KernelTime[] | null>
  /** Resolves when everything recorded so far has run; rejects where that failed. */
  sync(): Promise<void>
  dispose(): void
}
