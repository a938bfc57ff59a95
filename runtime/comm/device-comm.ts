// DeviceComm: the data plane of a group, one object per rank, one implementation per kind of hardware.
import type { DType } from '../core/dtype.ts'
import type { Shape } from '../core/shape.ts'
import type { Tensor } from '../core/tensor.ts'
import type { MeetOptions } from './rendezvous.ts'

export type ReduceOp = 'sum' | 'prod' | 'min' | 'max' | 'avg'

export const REDUCE_OPS: readonly ReduceOp[] = ['sum', 'prod', 'min', 'max', 'avg']

export interface FusedNorm {
  /** This rank's partial sum, [..., n]: float32, bfloat16 or float16. */
  x: Tensor
  /** [..., n], equal on all ranks; replaced by residual + sum of partials + bias, on every rank. */
  residual: Tensor
  /** [n], of the residual's dtype. */
  weight: Tensor
  /** [n], of the residual's dtype: added once, after the reduction. */
  bias?: Tensor | undefined
  /** Defaults to 1e-6; inside the square root. */
  eps?: number
  /** The weight holds w - 1 (Gemma, Qwen3-Next). */
  zeroCentered?: boolean
  /** Receives the normed rows; defaults to a new tensor. */
  out?: Tensor | undefined
}

export interface CommStats {
  /** Collectives on tensors this rank has completed, and how many of them were fused with a norm. */
  collectives: number
  fused: number
  /** Bytes this rank contributed to them. */
  bytes: number
  /** Of this rank's device since it was opened, all ranks on it together. */
  submits: number
  maps: number
}

/**
 * All members call the same methods in the same order with matching shapes, dtypes and options. A promise resolves when its result may be
 * used by further operations of this rank's device. A result that all ranks of a device would hold alike is stored once and shared by
 * them, so it is read-only: copy it before writing. Results are in the order of ranks, sums are added in that order.
 * @throws, on every rank: ERR_COLLECTIVE_MISMATCH, ERR_RANK_FAILED, ERR_TIMEOUT (see Rendezvous.meet), ERR_SHAPE, ERR_DTYPE, ERR_DEVICE.
 */
export interface DeviceComm {
  readonly rank: number
  readonly size: number
  /** This rank's index among the group's ranks on its device; rank 0 of a device loads what they share. */
  readonly deviceRank: number
  readonly deviceSize: number
  /** x on every rank, combined elementwise. */
  allReduce(x: Tensor, options?: { op?: ReduceOp; out?: Tensor | undefined } & MeetOptions): Promise<Tensor>
  /** All ranks' x, concatenated along dim. */
  allGather(x: Tensor, options?: { dim?: number } & MeetOptions): Promise<Tensor>
  /** The sum over ranks, of which rank r gets the r-th part along dim; the size of dim must be a multiple of the group's. */
  reduceScatter(x: Tensor, options?: { dim?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor>
  /** As allGather on rank dst, null on the others. */
  gather(x: Tensor, options?: { dst?: number; dim?: number } & MeetOptions): Promise<Tensor | null>
  /** Rank src's x on every rank; the others' x tells shape and dtype. */
  broadcast(x: Tensor, options?: { src?: number } & MeetOptions): Promise<Tensor>
  barrier(options?: MeetOptions): Promise<void>
  /** residual += sum over ranks of x, + bias; the result is its RMSNorm. One kernel on each device. */
  allReduceResidualBiasRMSNorm(args: FusedNorm, options?: MeetOptions): Promise<Tensor>
  /** Memory for an operand of collectives: the ranks of a device get slices of one buffer, or with `shared` one tensor for all of them. */
  allocate(shape: Shape, options?: { dtype?: DType; shared?: boolean } & MeetOptions): Promise<Tensor>
  split(options: { color: number | null; key?: number }): Promise<DeviceComm | null>
  stats(): CommStats
}
