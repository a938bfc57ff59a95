// Commands of a device with an engine as words: an op, its sizes, types and flags, its operands as block and offset. Read by native/cpu/commands.cc
// and by loops.ts, in the order of the columns here.

/**
 * What a command does. Portable: in the steps of core/portable.ts, which the CPU takes in any case. Wait is not for tensors: it holds a queue until another one has run so many commands. Joins: behind each slice the number
 * of joins that it brings about, each of the two topmost of the sums that wait, left + right; in the end one sum is left.
 */
export const OP = {
  /** queue, epoch */
  wait: 0,
  /** tokens, n, rows, first; type of table, of y; ids, table, y */
  embedding: 1,
  /** tokens, k, outs, elements of y's rows, column of the first output, rounding; type of x, of w; has bias; x, w, bias, y */
  matmul: 2,
  /** tokens, k, outs, block, first, elements of y's rows, column; type of x, of w; has bias, whole; x, w, bias, y */
  matmulTree: 3,
  /** tokens, heads, kvHeads, dim, start, positions; has position; x, table, q, keys, values, position: with it, it is added to start */
  rope: 4,
  /** tokens, heads, kvHeads, dim, start, window, positions; scale; has position, portable; q, keys, values, y, position */
  attention: 5,
  /** rows, n; type; portable; x, y */
  siluMul: 6,
  /** rows, n; type; eps; zero-centred, portable; x, weight, y */
  rmsNorm: 7,
  /** n; type; a, b, y */
  add: 8,
  /** rows, n; x, y */
  softmax: 9,
  /** rows, n, k; x, values, indices */
  topK: 10,
  /** n; type of x, of y; x, y */
  cast: 11,
  /** bytes; from, to */
  copy: 12,
  /** id, how many queues meet, whether this one leads; what leads brings the command that follows, and all share out its work */
  meet: 13,
  /** rows, n, pitch of the slices' rows, slices, reduction, divisor; type of slices, of y; joins; slices, y */
  reduce: 14,
  /** rows, n, slices; type of slices, of the others; eps; zero-centred, has bias, portable; joins; slices, residual, weight, bias, y */
  reduceNorm: 15,
  /** rows, slices, bytes of a row of y; bytes of a row of each slice; slices, y: the slices' rows side by side */
  gather: 16,
  // What follows is of CUDA devices alone. Peers' commands begin with: way, blocks, ranks, rank, bytes of an operand, of a third of packets,
  // nanoseconds of a wait, has multicast; their operands with the workspaces by rank, state, where the host is told, the multicast. See
  // native/cuda/peer_commands.cc.
  /** count; type; reduction; divided by the ranks, each sum of two rounded; x, y */
  peerReduce: 17,
  /** rows, first, all, n; type; eps, bias of the weight, quant, layout, factor, group; pads, has bias, y, sum; x, rows' operands */
  peerNorm: 18,
  /** see native/nccl */
  nccl: 19,
  /** rows, unit, pitch; of each rank units of a row, first, count; has y; x, y */
  peerGather: 20,
  /** as peerNorm; rows of experts, k, routed; type of scale; has scale, index, shared; rows, scale, index, shared, rows' operands */
  peerMoe: 21,
} as const

/** How slices are joined; the last two are for int32. */
export const REDUCTION = { sum: 0, prod: 1, min: 2, max: 3, minSigned: 4, maxSigned: 5 } as const

/** What a product may round x to; the second may be the first as well. */
export const ROUNDING = { none: 0, bfloat16: 1, int8: 2 } as const

export type OpName = keyof typeof OP

/** Element types as commands name them; 32-bit integers of both kinds are words, the last six are of weights alone. */
export const TYPE = { f32: 0, bf16: 1, f16: 2, i32: 3, u32: 3, q8_0: 4, q4_0: 5, q4_1: 6, q4_k: 7, q5_k: 8, q6_k: 9 } as const

export const OP_NAMES: readonly OpName[] = Object.keys(OP) as OpName[]
export const TYPE_NAMES = ['f32', 'bf16', 'f16', 'word', 'q8_0', 'q4_0', 'q4_1', 'q4_k', 'q5_k', 'q6_k'] as const

/** How many of an op's type words there are. */
export const OP_TYPES: Readonly<Record<OpName, 0 | 1 | 2>> = {
  wait: 0,
  embedding: 2,
  matmul: 2,
  matmulTree: 2,
  rope: 0,
  attention: 0,
  siluMul: 1,
  rmsNorm: 1,
  add: 1,
  softmax: 0,
  topK: 0,
  cast: 2,
  copy: 0,
  meet: 0,
  reduce: 2,
  reduceNorm: 2,
  gather: 0,
  peerReduce: 1,
  peerNorm: 1,
  nccl: 0,
  peerGather: 0,
  peerMoe: 2,
}
