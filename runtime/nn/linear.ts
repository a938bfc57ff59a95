// Parallel linear layers: column-parallel ones split their outputs over ranks, row-parallel ones their inputs.
import type { Communicator } from '../comm/communicator.ts'
import { ArgumentError, ShapeError } from '../core/errors.ts'
import { formatShape, type Shape } from '../core/shape.ts'
import { Tensor } from '../core/tensor.ts'
import { type Span, slotsOf } from '../core/tree.ts'
import type { Activations, Device, Product } from '../device/device.ts'
import { Partial } from './partial.ts'

/** What a layer's products may do; see Product. */
export interface Rounding {
  activations?: Activations | undefined
}

/** The inputs of a layer in blocks of `block` elements, rank r holding blocks `spans[r]`: what fixes the order of its sums for every cut. */
export interface BlockCut {
  readonly block: number
  readonly spans: readonly Span[]
}

/**
 * The cut of `inputs` elements at the ranks' own spans of elements, any of which may be empty.
 * @throws ERR_ARGUMENT where a rank's part begins inside a block.
 */
export function blockCut(inputs: readonly Span[], block: number): BlockCut {
  const total = Math.max(...inputs.map(({ start, count }) => start + count))
  const spans = inputs.map(({ start, count }, rank) => {
    const end = start + count
    for (const at of [start, end]) {
      if (at % block !== 0 && at !== total) {
        throw new ArgumentError(
          `Expected every rank's part to begin at a multiple of ${block} elements but rank ${rank} has ${start} to ${end}; choose smaller blocks or other ranks`,
        )
      }
    }
    return { start: Math.ceil(start / block), count: Math.ceil(end / block) - Math.ceil(start / block) }
  })
  return { block, spans }
}

/**
 * y = x w^T + b for this rank's outputs: x whole, y sharded. Several layers on the same x (q, k and v; gate and up) are one, stacked, in as many
 * parts as they have types.
 */
export class ColumnParallelLinear {
  readonly #device: Device
  /** [own outs of the part, in] each, one after the other. */
  readonly parts: readonly Tensor[]
  /** [own outs], float32. */
  readonly bias: Tensor | undefined
  /** Of all parts. */
  readonly #outs: number
  readonly #block: number | undefined
  readonly #rounding: Rounding

  /** With `block` the bits of an output do not depend on the number of tokens nor of ranks, and nothing is rounded. */
  constructor(
    device: Device,
    weight: Tensor | readonly Tensor[],
    bias?: Tensor,
    { block, activations }: { block?: number | undefined } & Rounding = {},
  ) {
    this.#device = device
    this.#rounding = { activations }
    this.parts = weight instanceof Tensor ? [weight] : weight
    for (const part of this.parts) checkWeight(part)
    this.#outs = this.parts.reduce((n, { shape }) => n + (shape[0] as number), 0)
    checkBias(bias, this.#outs)
    this.bias = bias
    this.#block = block
  }

  /** x [tokens, in] → [tokens, own outs], float32. */
  forward(x: Tensor, out?: Tensor): Tensor {
    const [first, ...others] = this.parts as [Tensor, ...Tensor[]]
    if (others.length === 0) return this.#product(x, first, { bias: this.bias, ...(out && { out }) })
    const y = out ?? Tensor.empty([x.shape[0] as number, this.#outs], { device: this.#device })
    let column = 0
    for (const part of this.parts) {
      const count = part.shape[0] as number
      using bias = this.bias?.narrow(0, column, count)
      if (count > 0) this.#product(x, part, { bias, out: y, column })
      column += count
    }
    return y
  }

  #product(x: Tensor, weight: Tensor, options: Product): Tensor {
    if (this.#block === undefined) return this.#device.matmul(x, weight, { ...options, ...this.#rounding })
    return this.#device.matmulTree(x, weight, { ...options, block: this.#block, whole: true })
  }
}

/**
 * y = sum over ranks of x w^T, + b: x sharded, y a Partial. The bias is held whole by every rank and added once, after the sum. A rank without
 * inputs adds zero: it runs no kernel, and takes part in the sum.
 */
export class RowParallelLinear {
  readonly #comm: Communicator
  readonly #device: Device
  /** [outs, own in]. */
  readonly weight: Tensor
  /** [outs], float32. */
  readonly bias: Tensor | undefined
  readonly #cut: BlockCut | undefined
  readonly #rounding: Rounding

  /** With `cut` the bits of the sum do not depend on how the inputs are cut over ranks, nor on the number of tokens, and nothing is rounded. */
  constructor(comm: Communicator, device: Device, weight: Tensor, bias?: Tensor, cut?: BlockCut, { activations }: Rounding = {}) {
    checkWeight(weight)
    checkBias(bias, weight.shape[0])
    this.#comm = comm
    this.#device = device
    this.weight = weight
    this.bias = bias
    this.#cut = cut
    this.#rounding = { activations }
  }

  /**
   * x [tokens, own in] → Partial [tokens, outs], float32. `out` from comm.allocate spares the collective a copy; with a cut it holds
   * `slots` times as much.
   */
  forward(x: Tensor, out?: Tensor): Partial {
    const cut = this.#cut
    const [tokens, outs] = [x.shape[0] as number, this.weight.shape[0] as number]
    if (!cut) {
      const y =
        x.size > 0 ? this.#device.matmul(x, this.weight, { ...(out && { out }), ...this.#rounding }) : this.#nothing([tokens, outs], out)
      return new Partial(this.#comm, y, this.bias, { contribution: x.size > 0 })
    }
    const { start: first, count } = cut.spans[this.#comm.rank] as Span
    const shape = [slotsOf(cut.spans), tokens, outs]
    const sums = out ?? Tensor.empty(shape, { device: this.#device })
    if (count > 0) this.#device.matmulTree(x, this.weight, { block: cut.block, first, out: sums })
    return new Partial(this.#comm, sums, this.bias, { tree: cut })
  }

  #nothing(shape: Shape, out?: Tensor): Tensor {
    if (!out) return Tensor.zeros(shape, { device: this.#device })
    out.setBytes(new Uint8Array(out.byteLength))
    return out
  }
}

function checkWeight({ shape }: Tensor): void {
  if (shape.length !== 2) throw new ShapeError(`Expected a weight [outs, in] but received ${formatShape(shape)}`)
}

function checkBias(bias: Tensor | undefined, outs: number | undefined): void {
  if (bias && (bias.shape.length !== 1 || bias.shape[0] !== outs))
    throw new ShapeError(`Expected a bias [${outs}] for a weight of ${outs} outs but received ${formatShape(bias.shape)}`)
}
