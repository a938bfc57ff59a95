// Calls of NCCL as commands: their numbers, the words of one, and what NCCL can reduce.
import type { DType } from '../../core/dtype.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import type { ReduceOp } from '../device-comm.ts'

/** As native/nccl/communicator.h numbers them. */
export const KIND = {
  allReduce: 0,
  reduce: 1,
  broadcast: 2,
  allGather: 3,
  reduceScatter: 4,
  allToAll: 5,
  gather: 6,
  scatter: 7,
  send: 8,
  recv: 9,
  allGatherV: 10,
  reduceScatterV: 11,
  allToAllV: 12,
} as const

/** NCCL's numbers of what it reduces here; what is only moved goes as bytes. */
const REDUCED: Partial<Record<DType, number>> = { int32: 2, uint32: 3, float16: 6, float32: 7, bfloat16: 9 }
const BYTES = 1
const OPERATION: Readonly<Record<ReduceOp, number>> = { sum: 0, prod: 1, max: 2, min: 3, avg: 4 }

/** The release that brought bfloat16 and averages. */
const AVERAGES = 21003

/** Whether NCCL of this version reduces such operands, and as we do: its min and max of floats lose a NaN. */
export function carries(version: number, dtype: DType | undefined, op: ReduceOp = 'sum'): boolean {
  if (dtype === undefined || REDUCED[dtype] === undefined || !(op in OPERATION)) return false
  if ((dtype === 'bfloat16' || op === 'avg') && version < AVERAGES) return false
  const whole = dtype === 'int32' || dtype === 'uint32'
  return whole ? op !== 'avg' : op !== 'min' && op !== 'max'
}

/** One rank's part of a call. Where a rank reads nothing, `from` is the place that it writes, and the other way round. */
export interface Part {
  rank: number
  /** Of messages, which have two ends. */
  kind?: 'send' | 'recv'
  /** Of a message. */
  peer?: number
  from: Place
  to: Place
  /** Whether it writes. */
  writes?: boolean
  /** Of allToAllV: what it sends to each rank, then what it gets of each. */
  counts?: readonly number[]
}

export interface Call {
  kind: keyof typeof KIND
  /** Absent for what is moved: counts are of bytes then. */
  reduction?: { dtype: DType; op: ReduceOp }
  root?: number
  count?: number
  /** Of the V forms, by rank. */
  counts?: readonly number[]
}

/** Which call a part is of, and how many parts of it this thread has. */
export interface Round {
  number: number
  members: number
}

/** The words between op and operands. */
export function wordsOf(
  communicator: number,
  { kind, reduction, root = 0, count = 0, counts = [] }: Call,
  part: Part,
  timeoutMs: number,
  { number, members }: Round,
): number[] {
  const type = reduction ? (REDUCED[reduction.dtype] as number) : BYTES
  const operation = reduction ? OPERATION[reduction.op] : 0
  const head = [communicator, KIND[part.kind ?? kind], type, operation, part.peer ?? root, count, timeoutMs]
  return [...head, number, members, ...(part.counts ?? counts)]
}
