// AllReduceFusionWorkspace: the symmetric buffer that partials are written to, and the memory of results, kept from call to call; what it says of
// itself, and whether a call fits in it.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { ArgumentError, describe } from '../../core/errors.ts'
import { checkShape, roundUp } from '../../core/shape.ts'
import type { Storage, TensorDevice } from '../../core/storage.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Communicator } from '../communicator.ts'
import { throwProblems } from './options.ts'

/** Sizes are in bytes. Flags and polling buffers are 0: ranks meet in the queue, not in memory. */
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

export class AllReduceFusionWorkspace implements Disposable {
  /** The kind of this rank's device. */
  readonly backend: TensorDevice['kind']
  readonly metadata: FusionWorkspaceMetadata
  readonly #operand: Tensor
  readonly #results = new Map<string, { memory: object; storage: Storage }>()
  #destroyed = false

  /** Programs use `createAllReduceFusionWorkspace`. Takes over `operand`. */
  constructor(metadata: FusionWorkspaceMetadata, operand: Tensor) {
    this.backend = operand.device.kind
    this.metadata = metadata
    this.#operand = operand
  }

  get destroyed(): boolean {
    return this.#destroyed
  }

  /**
   * The first rows of this rank's operand buffer, [tokens, hiddenDim]: write partials here, then pass it as `input`, and the ranks of a
   * device reduce them where they lie. A new handle: dispose it.
   * @throws ERR_SHAPE for more tokens than the workspace holds.
   */
  input(tokens: number, hiddenDim: number = this.metadata.hiddenDim): Tensor {
    this.checkOpen()
    checkShape([tokens, hiddenDim])
    using flat = this.#operand.reshape([this.#operand.size])
    using part = flat.narrow(0, 0, tokens * hiddenDim)
    return part.reshape([tokens, hiddenDim])
  }

  /** Whether a call of this size may use the workspace. */
  isBufferSizeSufficient(call: FusionProblemSize): boolean {
    return !this.#destroyed && sizeProblems(this.metadata, call).length === 0
  }

  /** @throws ERR_ARGUMENT with everything that keeps a call from using the workspace. */
  checkFits(call: FusionProblemSize): void {
    this.checkOpen()
    throwProblems('The fusion workspace does not suit this call', sizeProblems(this.metadata, call))
  }

  /**
   * Memory for the result `name` on a device, `memory` being what its views have in common: made with `capacity` bytes the first time and used
   * again while `byteLength` fits. The next call that asks for the name overwrites it.
   */
  result<S extends Storage>(memory: object, name: string, byteLength: number, capacity: number, allocate: (byteLength: number) => S): S {
    const known = this.#results.get(name)
    if (known?.memory === memory && known.storage.byteLength >= byteLength) return known.storage as S
    known?.storage.release()
    this.#results.delete(name)
    const storage = allocate(Math.max(byteLength, capacity))
    this.#results.set(name, { memory, storage })
    return storage
  }

  checkOpen(): void {
    if (this.#destroyed) throw new ArgumentError('This fusion workspace was destroyed; create another one')
  }

  /** Gives the memory back; results still held keep theirs. Doing so twice is no error. */
  destroy(): void {
    if (this.#destroyed) return
    this.#destroyed = true
    this.#operand.dispose()
    for (const { storage } of this.#results.values()) storage.release()
    this.#results.clear()
  }

  [Symbol.dispose](): void {
    this.destroy()
  }
}

export interface FusionWorkspaceOptions {
  comm: Communicator
  maxTokenNum: number
  hiddenDim: number
  /** Of the partials: float32, bfloat16 or float16. */
  dtype: DType
  /** Accepted for programs that set it; the workspace always suits one-shot. */
  forceOneshotSupport?: boolean
}

/** Collective: every rank asks for the same. @throws ERR_ARGUMENT with every problem of the sizes. */
export async function createAllReduceFusionWorkspace({
  comm,
  maxTokenNum,
  hiddenDim,
  dtype,
}: FusionWorkspaceOptions): Promise<AllReduceFusionWorkspace> {
  throwProblems('No fusion workspace can be made', workspaceProblems(maxTokenNum, hiddenDim, dtype))
  const operand = await comm.allocate([maxTokenNum, hiddenDim], { dtype })
  return new AllReduceFusionWorkspace(workspaceMetadata(comm.rank, comm.size, { maxTokenNum, hiddenDim, dtype }), operand)
}
