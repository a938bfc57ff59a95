// Tensor-parallel gated MLP of a decoder layer: merged gate and up, SiLU, down projection.
import type { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import type { ColumnParallelLinear, RowParallelLinear } from './linear.ts'
import type { Partial } from './partial.ts'

export interface MlpBuffers {
  /** [tokens, 2 * columns] */
  gateUp: Tensor
  /** [tokens, columns] */
  activated: Tensor
  /** [tokens, hidden] */
  partial: Tensor
}

export class ParallelMlp {
  readonly #device: Device
  readonly #gateUp: ColumnParallelLinear
  readonly #down: RowParallelLinear
  readonly #portable: boolean

  /** `portable`: see Device. */
  constructor(device: Device, gateUp: ColumnParallelLinear, down: RowParallelLinear, { portable = false }: { portable?: boolean } = {}) {
    this.#device = device
    this.#gateUp = gateUp
    this.#down = down
    this.#portable = portable
  }

  /** x [tokens, hidden] → Partial [tokens, hidden]. */
  forward(x: Tensor, buffers: MlpBuffers): Partial {
    const gateUp = this.#gateUp.forward(x, buffers.gateUp)
    const activated = this.#device.siluMul(gateUp, { portable: this.#portable, out: buffers.activated })
    return this.#down.forward(activated, buffers.partial)
  }
}
