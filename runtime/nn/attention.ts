// Tensor-parallel attention of a decoder layer: merged q, k and v, rotation, a key-value cache, grouped-query attention, output projection.
import type { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import type { ColumnParallelLinear, RowParallelLinear } from './linear.ts'
import type { Partial } from './partial.ts'

/** This rank's heads. */
export interface HeadShape {
  heads: number
  kvHeads: number
  dim: number
  /** Keys a position sees, its own included; 0: all before it. */
  window: number
}

/** Rows of past tokens, [capacity, kvHeads * dim] each. */
export interface KvCache {
  keys: Tensor
  values: Tensor
}

export interface AttentionBuffers {
  /** [tokens, (heads + 2 kvHeads) * dim] */
  qkv: Tensor
  /** [tokens, heads * dim] */
  q: Tensor
  /** [tokens, heads * dim] */
  attended: Tensor
  /** [tokens, hidden] */
  partial: Tensor
}

export class ParallelAttention {
  readonly #device: Device
  readonly #shape: HeadShape
  readonly #qkv: ColumnParallelLinear
  readonly #out: RowParallelLinear
  readonly #table: Tensor

  constructor(device: Device, shape: HeadShape, qkv: ColumnParallelLinear, out: RowParallelLinear, table: Tensor) {
    this.#device = device
    this.#shape = shape
    this.#qkv = qkv
    this.#out = out
    this.#table = table
  }

  /** x [tokens, hidden], the token at row 0 at position `start` → Partial [tokens, hidden]; the cache gains the tokens' rows. */
  forward(x: Tensor, { keys, values }: KvCache, start: number, buffers: AttentionBuffers): Partial {
    const { window, ...shape } = this.#shape
    const qkv = this.#qkv.forward(x, buffers.qkv)
    const q = this.#device.ropeAppend(qkv, { ...shape, table: this.#table, keys, values, start, out: buffers.q })
    const attended = this.#device.attention(q, { ...shape, keys, values, start, window, out: buffers.attended })
    return this.#out.forward(attended, buffers.partial)
  }
}
