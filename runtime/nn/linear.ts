// Parallel linear layers: column-parallel ones split their outputs over ranks, row-parallel ones their inputs.
import type { Communicator } from '../comm/communicator.ts'
import { ShapeError } from '../core/errors.ts'
import { formatShape } from '../core/shape.ts'
import type { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import { Partial } from './partial.ts'

/** y = x w^T + b for this rank's outputs: x whole, y sharded. Several layers on the same x (q, k and v; gate and up) are one, stacked. */
export class ColumnParallelLinear {
  readonly #device: Device
  /** [outs / ranks, in]. */
  readonly weight: Tensor
  /** [outs / ranks], float32. */
  readonly bias: Tensor | undefined

  constructor(device: Device, weight: Tensor, bias?: Tensor) {
    checkLinear(weight, bias, weight.shape[0])
    this.#device = device
    this.weight = weight
    this.bias = bias
  }

  /** x [tokens, in] → [tokens, outs / ranks], float32. */
  forward(x: Tensor, out?: Tensor): Tensor {
    return this.#device.matmul(x, this.weight, { bias: this.bias, ...(out && { out }) })
  }
}

/** y = sum over ranks of x w^T, + b: x sharded, y a Partial. The bias is held whole by every rank and added once, after the sum. */
export class RowParallelLinear {
  readonly #comm: Communicator
  readonly #device: Device
  /** [outs, in / ranks]. */
  readonly weight: Tensor
  /** [outs], float32. */
  readonly bias: Tensor | undefined

  constructor(comm: Communicator, device: Device, weight: Tensor, bias?: Tensor) {
    checkLinear(weight, bias, weight.shape[0])
    this.#comm = comm
    this.#device = device
    this.weight = weight
    this.bias = bias
  }

  /** x [tokens, in / ranks] → Partial [tokens, outs], float32. `out` from comm.allocate spares the collective a copy. */
  forward(x: Tensor, out?: Tensor): Partial {
    return new Partial(this.#comm, this.#device.matmul(x, this.weight, out && { out }), this.bias)
  }
}

function checkLinear(weight: Tensor, bias: Tensor | undefined, outs: number | undefined): void {
  if (weight.shape.length !== 2) throw new ShapeError(`Expected a weight [outs, in] but received ${formatShape(weight.shape)}`)
  if (bias && (bias.shape.length !== 1 || bias.shape[0] !== outs)) {
    throw new ShapeError(`Expected a bias [${outs}] for a weight ${formatShape(weight.shape)} but received ${formatShape(bias.shape)}`)
  }
}
