// Tensor-parallel attention of a decoder layer: merged q, k and v, rotation, a key-value cache, grouped-query attention, output projection.
import type { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import type { ColumnParallelLinear, RowParallelLinear } from './linear.ts'
import type { Norm, Partial } from './partial.ts'
import type { Workspace } from './workspace.ts'

/** This rank's heads, possibly none. */
export interface HeadShape {
  heads: number
  kvHeads: number
  dim: number
  /** Keys a position sees, its own included; 0: all before it. */
  window: number
  /** See Device. */
  portable?: boolean
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

/** Norms of each head of q and of k, [dim], applied before the heads turn. */
export interface HeadNorms {
  q: Norm
  k: Norm
  /** Activations that the layers of a model share: normed [tokens, (heads + 2 kvHeads) * dim]. */
  scratch: Workspace<'normed'>
  /** A cache that the layers share, for what nobody looks at: as many rows as the cache, of kvHeads * dim. */
  unused: Workspace<'keys' | 'values'>
}

export class ParallelAttention {
  readonly #device: Device
  readonly #shape: HeadShape
  readonly #qkv: ColumnParallelLinear
  readonly #out: RowParallelLinear
  readonly #table: Tensor
  readonly #norms: HeadNorms | undefined

  constructor(
    device: Device,
    shape: HeadShape,
    qkv: ColumnParallelLinear,
    out: RowParallelLinear,
    table: Tensor,
    norms?: HeadNorms | undefined,
  ) {
    this.#device = device
    this.#shape = shape
    this.#qkv = qkv
    this.#out = out
    this.#table = table
    this.#norms = norms
  }

  /** x [tokens, hidden], the token at row 0 at position `start` → Partial [tokens, hidden]; the cache gains the tokens' rows. See RopeAppend. */
  forward(x: Tensor, cache: KvCache, start: number | Tensor, buffers: AttentionBuffers): Partial {
    const { window, portable = false, ...shape } = this.#shape
    if (shape.heads === 0) return this.#out.forward(buffers.attended, buffers.partial)
    const qkv = this.#qkv.forward(x, buffers.qkv)
    const q = this.#device.ropeAppend(qkv, { ...shape, ...cache, table: this.#table, start, out: buffers.q })
    if (this.#norms) this.#appendNormed(qkv, this.#norms, cache, start, q)
    const attended = this.#device.attention(q, { ...shape, ...cache, start, window, portable, out: buffers.attended })
    return this.#out.forward(attended, buffers.partial)
  }

  /**
   * Writes q and the cached keys anew, from normed heads. A norm has one weight for all heads of its input, so there are two, each of all
   * heads, and of either result only the heads that it was for are kept.
   */
  #appendNormed(qkv: Tensor, { q, k, scratch, unused }: HeadNorms, cache: KvCache, start: number | Tensor, out: Tensor): void {
    const { heads: count, kvHeads, dim } = this.#shape
    const shape = { heads: count, kvHeads, dim }
    const tokens = qkv.shape[0] as number
    const { normed } = scratch.rows(tokens)
    const { keys: noKeys, values } = unused.rows(unused.maxTokens)
    using heads = qkv.reshape([-1, shape.dim])
    using normedHeads = normed.reshape([-1, shape.dim])
    for (const [{ weight, ...norm }, keys] of [[k, cache.keys] as const, [q, noKeys] as const]) {
      this.#device.rmsNorm(heads, weight, { ...norm, out: normedHeads })
      this.#device.ropeAppend(normed, { ...shape, table: this.#table, keys, values, start, out })
    }
  }
}
