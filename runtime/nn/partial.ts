// Partial: a rank's share of a sum over its group, not yet added up. Linear work happens on partials; the sum waits for the first use that
// is not linear, and is then one fused collective.
import type { Communicator } from '../comm/communicator.ts'
import type { Tensor } from '../core/tensor.ts'

export interface Norm {
  /** [hidden], float32. */
  weight: Tensor
  eps: number
}

export class Partial {
  readonly comm: Communicator
  /** [tokens, hidden]: this rank's addend. */
  readonly x: Tensor
  /** [hidden]: added once, after the sum. */
  readonly bias: Tensor | undefined

  constructor(comm: Communicator, x: Tensor, bias?: Tensor) {
    this.comm = comm
    this.x = x
    this.bias = bias
  }

  /** The sum over ranks alone, without the bias: for uses outside of a residual stream. */
  sum(): Promise<Tensor> {
    return this.comm.allReduce(this.x)
  }

  /** residual += the sum and the bias; returns the norm of that, in `out` where it is given. One collective. */
  addNorm(residual: Tensor, { weight, eps }: Norm, out?: Tensor): Promise<Tensor> {
    return this.comm.allReduceResidualBiasRMSNorm({ x: this.x, residual, weight, eps, bias: this.bias, out })
  }
}
