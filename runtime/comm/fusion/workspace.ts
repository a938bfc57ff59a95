// What a fusion workspace says of itself, and whether a call fits in it.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { describe } from '../../core/errors.ts'
import { roundUp } from '../../core/shape.ts'

/** Sizes are in bytes. Flags and polling buffers are 0: on this backend ranks meet in the queue, not in memory. */
export interface FusionWorkspaceMetadata {
  readonly tpRank: number
  readonly tpSize: number
  readonly maxTokenNum: number
  readonly hiddenDim: number
  readonly dtype: DType
  /** Whether partials are float32. */
  readonly useFp32Lamport: boolean
  /** The operand buffer, all ranks of the group together. */
  readonly bufferSize: number
  readonly flagSize: number
  readonly lamportCommSize: number
  readonly lamportBufferSize: number
}

/** A call that is to run in a workspace. */
export interface FusionProblemSize {
  tpSize: number
  numTokens: number
  hiddenDim: number
  dtype: DType
  /** Changes nothing here: one-shot and two-shot need the same memory. */
  useOneshot?: 'auto' | boolean | undefined
}

const FLOATS: readonly DType[] = ['float32', 'bfloat16', 'float16']

/** What is wrong with the sizes of a new workspace, as sentences. */
export function workspaceProblems(maxTokenNum: unknown, hiddenDim: unknown, dtype: unknown): string[] {
  const wrong: string[] = []
  for (const [name, value] of Object.entries({ maxTokenNum, hiddenDim })) {
    if (!Number.isSafeInteger(value) || (value as number) < 1) {
      wrong.push(`expected an integer of at least 1 for ${name} but received ${describe(value)}`)
    }
  }
  if (Number.isInteger(hiddenDim) && (hiddenDim as number) % 4 !== 0)
    wrong.push(`expected a multiple of 4 for hiddenDim but received ${hiddenDim}`)
  if (!FLOATS.includes(dtype as DType)) wrong.push(`expected ${FLOATS.join(', ')} for dtype but received ${describe(dtype)}`)
  return wrong
}

export function workspaceMetadata(
  tpRank: number,
  tpSize: number,
  { maxTokenNum, hiddenDim, dtype }: { maxTokenNum: number; hiddenDim: number; dtype: DType },
): FusionWorkspaceMetadata {
  return Object.freeze({
    tpRank,
    tpSize,
    maxTokenNum,
    hiddenDim,
    dtype,
    useFp32Lamport: dtype === 'float32',
    bufferSize: tpSize * roundUp(maxTokenNum * hiddenDim * dtypeSize(dtype), 256),
    flagSize: 0,
    lamportCommSize: 0,
    lamportBufferSize: 0,
  })
}

/** Why a call does not fit in a workspace, as sentences; none where it does. Fewer tokens may be wider: what counts is their product. */
export function sizeProblems(
  { tpSize, maxTokenNum, hiddenDim, useFp32Lamport }: FusionWorkspaceMetadata,
  call: FusionProblemSize,
): string[] {
  const wrong: string[] = []
  if (call.tpSize !== tpSize) wrong.push(`it is for ${tpSize} ranks, not ${call.tpSize}`)
  if (!(call.numTokens * call.hiddenDim <= maxTokenNum * hiddenDim)) {
    wrong.push(`it holds ${maxTokenNum} tokens of ${hiddenDim}, not ${call.numTokens} of ${call.hiddenDim}`)
  }
  if ((call.dtype === 'float32') !== useFp32Lamport) {
    wrong.push(`it is for ${useFp32Lamport ? 'float32' : '16-bit floats'}, not ${call.dtype}`)
  }
  return wrong
}
