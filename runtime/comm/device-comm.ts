// DeviceComm: the data plane of a group, one object per rank, one implementation per kind of hardware.
import type { DType } from '../core/dtype.ts'
import type { Shape } from '../core/shape.ts'
import type { Tensor } from '../core/tensor.ts'
import type { Span } from '../core/tree.ts'
import type { AlgorithmName } from './algorithms.ts'
import type { MoeAllReduceFusion, MoeFinalizeAllReduceFusion } from './fusion/moe.ts'
import type { AllReduceFusion, FusionResult } from './fusion/options.ts'
import type { Recording } from './recording.ts'
import type { MeetOptions } from './rendezvous.ts'

export type ReduceOp = 'sum' | 'prod' | 'min' | 'max' | 'avg'

export const REDUCE_OPS: readonly ReduceOp[] = ['sum', 'prod', 'min', 'max', 'avg']

/** What a rank says of its own operand of a sum; ranks may say different things. */
export interface Contribution {
  /**
   * False: x is all zeros, as that of a rank without a shard is. Where operands pass through the host's memory it is neither read nor sent; the
   * result is the same. For sums and averages. Defaults to true.
   */
  contribution?: boolean | undefined
}

export interface AllReduceOptions extends MeetOptions, Contribution {
  /** Defaults to sum. */
  op?: ReduceOp
  /** Receives the result. */
  out?: Tensor | undefined
  /** How devices exchange their partials, alike on all ranks; absent: chosen by what moves fewest bytes. The bits are the same. */
  algorithm?: AlgorithmName | undefined
}

/** How the blocks of a product's k lie on the ranks, for sums in the order of one tree: rank r holds blocks `spans[r]`. Alike on all ranks. */
export interface TreeCut {
  readonly spans: readonly Span[]
}

export interface FusedNorm extends Contribution {
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
  /** For groups over several devices; see AllReduceOptions. Not with `tree`. */
  algorithm?: AlgorithmName | undefined
  /** x holds the sums of this rank's subtrees (device.matmulTree), as many as the rank with most has: [subtrees, ..., n], float32. */
  tree?: TreeCut | undefined
  /** As Device's: the same bits on every kind of device where the sum has them too. With `tree` it always is. */
  portable?: boolean
  /** Receives the normed rows; defaults to a new tensor. */
  out?: Tensor | undefined
}

/** Lengths along dim, one for each rank, the same list on all ranks; where absent, those of the ranks' own operands. */
export type GatherVOptions = { dim?: number; sizes?: readonly number[] | undefined } & MeetOptions

/** Lengths along dim, one for each rank, the same list on all ranks; where absent, equal ones. */
export type ScatterVOptions = { dim?: number; sizes?: readonly number[] | undefined; op?: ReduceOp } & MeetOptions

export type AllToAllOptions = {
  /** Rows for each rank, of this rank's x; equal ones where absent. May differ from rank to rank. */
  splits?: readonly number[] | undefined
  /** Rows that this rank expects from each rank: checked against what they send. */
  outputSplits?: readonly number[] | undefined
} & MeetOptions

/** Where blocks lie in a buffer, in elements: element (row y, column x) of rank r's block is number r * stride + y * pitch + x. */
export interface Pitched {
  pitch: number
  stride: number
  width: number
  height: number
}

/** The fused norm between two layouts of the ranks: partial sums over group0, results to group1; at least one is the whole group. */
export interface FusedNormEx<Group> {
  /** This rank's partial sums, [all tokens, n], rows of the first inner group first; receives the normed rows of its group1. */
  hidden: Tensor
  /** [at least the tokens of this rank's inner group, n], of hidden's dtype. Only the rows this rank owns are updated; see ownedRows. */
  residual: Tensor
  /** [n], as bias, of hidden's dtype. */
  weight: Tensor
  bias?: Tensor | undefined
  /** Defaults to 1e-6. */
  eps?: number
  zeroCentered?: boolean
  /** Groups split off this one that this rank is in; null is this one. */
  group0: Group | null
  group1: Group | null
  /** Tokens of each inner group; an inner group is the smaller of the two. */
  localTokenNums: readonly number[]
}

/** What `tune` found, the same on every rank. */
export interface TuneReport {
  /** Adapters and the number of ranks on each. */
  topology: string
  /** Whether all algorithms gave the same bits; two-shot is not chosen where they did not. */
  bitsEqual: boolean
  /** Bytes that one more wait for a device is worth. */
  stepBytes: number
  smallMilliseconds: number
  largeMilliseconds: number
}

export interface CommStats {
  /** Collectives on tensors this rank has completed, and how many of them were fused with a norm. */
  collectives: number
  fused: number
  /** Bytes this rank contributed to them. */
  bytes: number
  /** Rounds in which tensors' bytes went over the wire that joins the ranks, and the bytes this rank sent in them; 0 within one thread. */
  crossings: number
  hostBytes: number
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
  allReduce(x: Tensor, options?: AllReduceOptions): Promise<Tensor>
  /** The sum of all ranks' subtree sums x [subtrees, ...shape], float32, in the order of the tree: → `shape`. */
  allReduceTree(x: Tensor, options: { tree: TreeCut; shape: Shape } & MeetOptions): Promise<Tensor>
  /** All ranks' x, concatenated along dim. */
  allGather(x: Tensor, options?: { dim?: number } & MeetOptions): Promise<Tensor>
  /** The sum over ranks, of which rank r gets the r-th part along dim; the size of dim must be a multiple of the group's. */
  reduceScatter(x: Tensor, options?: { dim?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor>
  /** As allGather on rank dst, null on the others. */
  gather(x: Tensor, options?: { dst?: number; dim?: number } & MeetOptions): Promise<Tensor | null>
  /** Rank src's x on every rank; the others' x tells shape and dtype. In place, every rank's own x receives it and is the result. */
  broadcast(x: Tensor, options?: { src?: number; inPlace?: boolean } & MeetOptions): Promise<Tensor>
  /** As allReduce on rank dst, null on the others. */
  reduce(x: Tensor, options?: { dst?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor | null>
  /** As allGather, of operands whose length along dim may differ or be zero; of a list, each of its tensors. */
  allGatherV(x: Tensor, options?: GatherVOptions): Promise<Tensor>
  allGatherV(x: readonly Tensor[], options?: GatherVOptions): Promise<Tensor[]>
  /** As reduceScatter, of which rank r gets sizes[r] along dim. */
  reduceScatterV(x: Tensor, options?: ScatterVOptions): Promise<Tensor>
  /** The r-th part of rank src's x along dim; the others' x is not looked at. */
  scatter(x: Tensor | null, options?: { src?: number; dim?: number } & MeetOptions): Promise<Tensor>
  /** Cuts of x along its rows, the r-th for rank r; the result is what this rank got, in the order of the senders. */
  allToAll(x: Tensor, options?: AllToAllOptions): Promise<Tensor>
  /** Every rank's block in every rank's buffer, in place; the result is the buffer. */
  allGather2D(buffer: Tensor, layout: Pitched & MeetOptions): Promise<Tensor>
  /** To rank dst, by default the next one; resolves once it is received. The n-th send of a pair meets its n-th recv. */
  send(x: Tensor, options?: { dst?: number } & MeetOptions): Promise<void>
  /** From rank src, by default the previous one, into new memory. */
  recv(shape: Shape, dtype: DType, options?: { src?: number } & MeetOptions): Promise<Tensor>
  barrier(options?: MeetOptions): Promise<void>
  /** residual += sum over ranks of x, + bias; the result is its RMSNorm. One kernel on each device. */
  allReduceResidualBiasRMSNorm(args: FusedNorm, options?: MeetOptions): Promise<Tensor>
  /** The fused norm with the sum over one group and the result to another; called by all ranks of this group. */
  allReduceResidualBiasRMSNormEx(args: FusedNormEx<DeviceComm>, options?: MeetOptions): Promise<Tensor>
  /** The sum over ranks, then what the pattern adds: residual, RMSNorm, FP8 or FP4 codes. */
  allReduceFusion(args: AllReduceFusion, options?: MeetOptions): Promise<FusionResult>
  /** This rank's expert rows and the shared expert's joined, then as allReduceFusion with residual and norm. */
  moeAllReduceFusion(args: MoeAllReduceFusion, options?: MeetOptions): Promise<FusionResult>
  /** As moeAllReduceFusion, from rows in the experts' own order and an index of them. */
  moeFinalizeAllReduceFusion(args: MoeFinalizeAllReduceFusion, options?: MeetOptions): Promise<FusionResult>
  /** Memory for an operand of collectives: the ranks of a device get slices of one buffer, or with `shared` one tensor for all of them. */
  allocate(shape: Shape, options?: { dtype?: DType; shared?: boolean } & MeetOptions): Promise<Tensor>
  /** Checks on every rank that the tensor can be an operand. Memory needs nothing more here: any tensor of the device is one. */
  register(tensor: Tensor, options?: MeetOptions): Promise<void>
  /** As register: nothing is kept that could be given up. */
  deregister(tensor: Tensor, options?: MeetOptions): Promise<void>
  /** Whether `record` can. */
  readonly records: boolean
  /**
   * Runs `step` once on every rank, and makes of its operations one that can be launched again; what a step reads from the host, or waits for, it
   * does the first time alone, so it is refused. @throws ERR_ARGUMENT where `records` is false, or within another step.
   */
  record(step: () => Promise<void>, options?: MeetOptions): Promise<Recording>
  split(options: { color: number | null; key?: number }): Promise<DeviceComm | null>
  /** Measures this group's devices for the choice of algorithms; collective. */
  tune(options?: MeetOptions): Promise<TuneReport>
  /** One line: the group's ranks, their devices, and which algorithms its reductions take. */
  describe(): string
  stats(): CommStats
  /** This rank takes part no more: later calls throw ERR_ARGUMENT, what its peers still call fails with ERR_RANK_FAILED. */
  destroy(): void
  /** Ends the group: pending and later collectives of all ranks reject with ERR_RANK_FAILED, which names this rank. */
  abort(reason: unknown): void
}
