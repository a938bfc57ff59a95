// Workspace: a model's activations, allocated once and symmetrically, so that the ranks of a device run each step as one and no step allocates.
import type { Communicator } from '../comm/communicator.ts'
import type { DType } from '../core/dtype.ts'
import { ArgumentError, checkInteger } from '../core/errors.ts'
import type { Tensor } from '../core/tensor.ts'

export interface BufferSpec {
  /** Elements of a row; absent: one, and rows are a list. */
  width?: number
  dtype?: DType
  /** One buffer for all ranks of a device instead of one for each. */
  shared?: boolean
}

export class Workspace<Name extends string> implements Disposable {
  readonly maxTokens: number
  readonly #buffers: Record<Name, Tensor>
  /** Views of the first rows, by number of rows: single tokens, and the last other number seen. */
  readonly #views = new Map<number, Record<Name, Tensor>>()

  private constructor(maxTokens: number, buffers: Record<Name, Tensor>) {
    this.maxTokens = maxTokens
    this.#buffers = buffers
  }

  /** Collective: every rank asks for the same buffers. */
  static async create<Name extends string>(
    comm: Communicator,
    maxTokens: number,
    specs: Record<Name, BufferSpec>,
  ): Promise<Workspace<Name>> {
    checkInteger('maxTokens', maxTokens, 1)
    const buffers: Partial<Record<Name, Tensor>> = {}
    for (const name of Object.keys(specs) as Name[]) {
      const { width, dtype = 'float32', shared = false } = specs[name]
      buffers[name] = await comm.allocate(width === undefined ? [maxTokens] : [maxTokens, width], { dtype, shared })
    }
    return new Workspace(maxTokens, buffers as Record<Name, Tensor>)
  }

  /** Every buffer's first `tokens` rows. The views belong to the workspace. */
  rows(tokens: number): Readonly<Record<Name, Tensor>> {
    const known = this.#views.get(tokens)
    if (known) return known
    if (!Number.isInteger(tokens) || tokens < 1 || tokens > this.maxTokens) {
      throw new ArgumentError(`Expected 1 to ${this.maxTokens} tokens for one step but received ${tokens}; feed longer inputs in parts`)
    }
    for (const [count, views] of this.#views) if (count !== 1) this.#drop(count, views)
    const views = Object.fromEntries(Object.entries<Tensor>(this.#buffers).map(([name, buffer]) => [name, buffer.narrow(0, 0, tokens)]))
    this.#views.set(tokens, views as Record<Name, Tensor>)
    return views as Record<Name, Tensor>
  }

  dispose(): void {
    for (const [count, views] of this.#views) this.#drop(count, views)
    for (const buffer of Object.values<Tensor>(this.#buffers)) buffer.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #drop(count: number, views: Record<Name, Tensor>): void {
    for (const view of Object.values<Tensor>(views)) view.dispose()
    this.#views.delete(count)
  }
}
