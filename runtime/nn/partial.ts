// Partial: a rank's share of a sum over its group, not yet added up. Linear work happens on partials; the sum waits for the first use that
// is not linear, and is then one fused collective.
import type { Communicator } from '../comm/communicator.ts'
import type { TreeCut } from '../comm/device-comm.ts'
import type { Tensor } from '../core/tensor.ts'
import { slotsOf } from '../core/tree.ts'

export interface Norm {
  /** [hidden], float32. */
  weight: Tensor
  eps: number
  /** See Device. */
  portable?: boolean
}

export class Partial {
  readonly comm: Communicator
  /** [tokens, hidden]: this rank's addend. */
  readonly x: Tensor
  /** [hidden]: added once, after the sum. */
  readonly bias: Tensor | undefined

  /** How the sum is joined, where x holds sums of subtrees: [subtrees, tokens, hidden] in memory. */
  readonly tree: TreeCut | undefined
  /** Whether x may be other than zeros; a rank without a shard adds nothing. */
  readonly contribution: boolean

  constructor(
    comm: Communicator,
    x: Tensor,
    bias?: Tensor,
    { tree, contribution = true }: { tree?: TreeCut; contribution?: boolean } = {},
  ) {
    this.comm = comm
    this.x = x
    this.bias = bias
    this.tree = tree
    this.contribution = contribution
  }

  /** The sum over ranks alone, [tokens, hidden], without the bias: for uses outside of a residual stream. */
  sum(hidden: number = this.x.shape.at(-1) as number): Promise<Tensor> {
    const { comm, x, tree, contribution } = this
    if (!tree) return comm.allReduce(x, { contribution })
    return comm.allReduceTree(x, { tree, shape: [x.size / hidden / slotsOf(tree.spans), hidden] })
  }

  /** residual += the sum and the bias; returns the norm of that, in `out` where it is given. One collective. */
  addNorm(residual: Tensor, norm: Norm, out?: Tensor): Promise<Tensor> {
    const { x, bias, tree, contribution } = this
    return this.comm.allReduceResidualBiasRMSNorm({ x, residual, ...norm, bias, tree, contribution, out })
  }
}
