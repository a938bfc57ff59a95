// Every `.wgsl` file as text, and the program of a kernel: the rank prelude, its dtype preludes, its own file.
import add from '../../../shaders/add.wgsl'
import allReduce from '../../../shaders/all_reduce.wgsl'
import allReduceFusion from '../../../shaders/all_reduce_fusion.wgsl'
import allReduceRmsNorm from '../../../shaders/all_reduce_rms_norm.wgsl'
import attention from '../../../shaders/attention.wgsl'
import attentionPortable from '../../../shaders/attention_portable.wgsl'
import cast from '../../../shaders/cast.wgsl'
import copy from '../../../shaders/copy.wgsl'
import copyBytes from '../../../shaders/copy_bytes.wgsl'
import embedding from '../../../shaders/embedding.wgsl'
import matmul from '../../../shaders/matmul.wgsl'
import matmulTiled from '../../../shaders/matmul_tiled.wgsl'
import matmulTree from '../../../shaders/matmul_tree.wgsl'
import matvec from '../../../shaders/matvec.wgsl'
import moeCombine from '../../../shaders/moe_combine.wgsl'
import bf16 from '../../../shaders/prelude/bf16.wgsl'
import bf16x1 from '../../../shaders/prelude/bf16x1.wgsl'
import blocks from '../../../shaders/prelude/blocks.wgsl'
import f16 from '../../../shaders/prelude/f16.wgsl'
import f16x1 from '../../../shaders/prelude/f16x1.wgsl'
import f32 from '../../../shaders/prelude/f32.wgsl'
import f32x1 from '../../../shaders/prelude/f32x1.wgsl'
import i32 from '../../../shaders/prelude/i32.wgsl'
import narrow from '../../../shaders/prelude/narrow.wgsl'
import portable from '../../../shaders/prelude/portable.wgsl'
import rank from '../../../shaders/prelude/rank.wgsl'
import rows from '../../../shaders/prelude/rows.wgsl'
import u32 from '../../../shaders/prelude/u32.wgsl'
import u32x1 from '../../../shaders/prelude/u32x1.wgsl'
import weightBf16 from '../../../shaders/prelude/weight_bf16.wgsl'
import weightF16 from '../../../shaders/prelude/weight_f16.wgsl'
import weightF32 from '../../../shaders/prelude/weight_f32.wgsl'
import weightF32x1 from '../../../shaders/prelude/weight_f32x1.wgsl'
import weightI32 from '../../../shaders/prelude/weight_i32.wgsl'
import weightQ40 from '../../../shaders/prelude/weight_q4_0.wgsl'
import weightQ41 from '../../../shaders/prelude/weight_q4_1.wgsl'
import weightQ4K from '../../../shaders/prelude/weight_q4_k.wgsl'
import weightQ5K from '../../../shaders/prelude/weight_q5_k.wgsl'
import weightQ6K from '../../../shaders/prelude/weight_q6_k.wgsl'
import weightQ80 from '../../../shaders/prelude/weight_q8_0.wgsl'
import weightU32 from '../../../shaders/prelude/weight_u32.wgsl'
import rmsNorm from '../../../shaders/rms_norm.wgsl'
import rope from '../../../shaders/rope.wgsl'
import siluMul from '../../../shaders/silu_mul.wgsl'
import softmax from '../../../shaders/softmax.wgsl'
import topK from '../../../shaders/top_k.wgsl'
import treeSum from '../../../shaders/tree_sum.wgsl'
import type { BlockDType } from '../../core/dtype.ts'

/** Element types a kernel can be built for; `x1` are the forms for rows whose length is no multiple of four. */
export type Prelude = 'f32' | 'f32x1' | 'bf16' | 'bf16x1' | 'f16' | 'f16x1' | 'i32' | 'u32' | 'u32x1'
export type WeightPrelude = 'f32' | 'f32x1' | 'bf16' | 'f16' | 'i32' | 'u32' | BlockDType

const PRELUDES: Record<Prelude, string> = { f32, f32x1, bf16, bf16x1, f16, f16x1, i32, u32, u32x1 }
const WEIGHT_PRELUDES: Record<Exclude<WeightPrelude, BlockDType>, string> = {
  f32: weightF32,
  f32x1: weightF32x1,
  bf16: weightBf16,
  f16: weightF16,
  i32: weightI32,
  u32: weightU32,
}
const BLOCK_PRELUDES: Record<BlockDType, string> = {
  q8_0: weightQ80,
  q4_0: weightQ40,
  q4_1: weightQ41,
  q4_k: weightQ4K,
  q5_k: weightQ5K,
  q6_k: weightQ6K,
}

interface Source {
  text: string
  /** Access of storage bindings 1, 2, 3 ...: `r` read, `w` read and written. */
  access: string
  /** Reads rows of weights `w`, in floats or in blocks. */
  rows?: true
  /** Has a form with the same bits on every device, or no other. */
  portable?: true
}

export type KernelName =
  | 'add'
  | 'all_reduce'
  | 'all_reduce_fusion'
  | 'all_reduce_rms_norm'
  | 'attention'
  | 'attention_portable'
  | 'cast'
  | 'copy'
  | 'copy_bytes'
  | 'embedding'
  | 'matmul'
  | 'matmul_tiled'
  | 'matmul_tree'
  | 'matvec'
  | 'moe_combine'
  | 'rms_norm'
  | 'rope'
  | 'silu_mul'
  | 'softmax'
  | 'top_k'
  | 'tree_sum'

const SOURCES: Record<KernelName, Source> = {
  add: { text: add, access: 'rrw' },
  all_reduce: { text: allReduce, access: 'rw' },
  all_reduce_fusion: { text: `${narrow}\n${allReduceFusion}`, access: 'rrrrwwww' },
  all_reduce_rms_norm: { text: allReduceRmsNorm, access: 'rwrrw', portable: true },
  attention: { text: attention, access: 'rrrw' },
  attention_portable: { text: attentionPortable, access: 'rrrw', portable: true },
  cast: { text: cast, access: 'rw' },
  copy: { text: copy, access: 'rw' },
  copy_bytes: { text: copyBytes, access: 'rw' },
  embedding: { text: embedding, access: 'rrw', rows: true },
  matmul: { text: matmul, access: 'rrrw', rows: true },
  matmul_tiled: { text: matmulTiled, access: 'rrrw', rows: true },
  matmul_tree: { text: matmulTree, access: 'rrrw', rows: true, portable: true },
  matvec: { text: matvec, access: 'rrrw', rows: true },
  moe_combine: { text: moeCombine, access: 'rrrrw' },
  rms_norm: { text: rmsNorm, access: 'rrw', portable: true },
  rope: { text: rope, access: 'rrwww', portable: true },
  silu_mul: { text: siluMul, access: 'rw', portable: true },
  softmax: { text: softmax, access: 'rw' },
  top_k: { text: topK, access: 'rww' },
  tree_sum: { text: treeSum, access: 'rw' },
}

export const KERNEL_NAMES: readonly KernelName[] = Object.keys(SOURCES) as KernelName[]

export function accessOf(name: KernelName): string {
  return SOURCES[name].access
}

/** The WGSL text of a kernel for an element type and, where it has one, a weight type: blocks are for kernels that read rows of weights. */
export function program(name: KernelName, element?: Prelude, weight?: WeightPrelude): string {
  const source = SOURCES[name]
  const weights = weight && weightText(weight, source.rows)
  return [rank, source.portable && portable, element && PRELUDES[element], weights, source.text].filter(Boolean).join('\n')
}

function weightText(weight: WeightPrelude, inRows?: true): string {
  if (isBlock(weight)) return `${blocks}\n${BLOCK_PRELUDES[weight]}`
  return inRows ? `${WEIGHT_PRELUDES[weight]}\n${rows}` : WEIGHT_PRELUDES[weight]
}

function isBlock(weight: WeightPrelude): weight is BlockDType {
  return weight in BLOCK_PRELUDES
}
