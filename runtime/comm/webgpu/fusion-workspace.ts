// AllReduceFusionWorkspace: the symmetric buffer that partials are written to, and the memory of results, kept from call to call.
import type { DType } from '../../core/dtype.ts'
import { ArgumentError } from '../../core/errors.ts'
import { checkShape } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Gpu } from '../../device/webgpu/gpu.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import type { Communicator } from '../communicator.ts'
import { throwProblems } from '../fusion/options.ts'
import {
  type FusionProblemSize,
  type FusionWorkspaceMetadata,
  sizeProblems,
  workspaceMetadata,
  workspaceProblems,
} from '../fusion/workspace.ts'

export class AllReduceFusionWorkspace implements Disposable {
  readonly backend = 'webgpu'
  readonly metadata: FusionWorkspaceMetadata
  readonly #operand: Tensor
  readonly #results = new Map<string, GpuStorage>()
  #destroyed = false

  /** Programs use `createAllReduceFusionWorkspace`. Takes over `operand`. */
  constructor(metadata: FusionWorkspaceMetadata, operand: Tensor) {
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
   * Memory for the result `name` on a device, made with `capacity` bytes the first time and used again while `byteLength` fits. The next
   * call that asks for the name overwrites it.
   */
  result(gpu: Gpu, name: string, byteLength: number, capacity: number): GpuStorage {
    const known = this.#results.get(name)
    if (known && known.pool === gpu.pool && known.byteLength >= byteLength) return known
    known?.release()
    this.#results.delete(name)
    const storage = gpu.pool.allocate(Math.max(byteLength, capacity))
    this.#results.set(name, storage)
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
    for (const storage of this.#results.values()) storage.release()
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
