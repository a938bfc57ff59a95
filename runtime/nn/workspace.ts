// Workspace: a model's activations, allocated once and symmetrically, so that the ranks of a device run each step as one and no step allocates.
import type { Communicator } from '../comm/communicator.ts'
import type { DType } from '../core/dtype.ts'
import { ArgumentError, checkInteger } from '../core/errors.ts'
import type { TensorDevice } from '../core/storage.ts'
import { Tensor } from '../core/tensor.ts'

export interface BufferSpec {
  /** Elements of a row; absent: one, and rows are a list. */
  width?: number
  dtype?: DType
  /** One buffer for all ranks of a device instead of one for each. */
  shared?: boolean
  /** Where ranks differ in width: the device on which this rank has a buffer of its own, outside of symmetric memory. */
  own?: TensorDevice | undefined
}

export class Workspace<Name extends string> implements Disposable {
  readonly maxTokens: number
  readonly #buffers: Record<Name, Tensor>
  /** Elements of a row; absent for lists. */
  readonly #widths: Readonly<Record<Name, number | undefined>>
  /** Views of the first rows, by number of rows: single tokens, and the last other number seen. */
  readonly #views = new Map<number, Record<Name, Tensor>>()

  private constructor(maxTokens: number, buffers: Record<Name, Tensor>, widths: Record<Name, number | undefined>) {
    this.maxTokens = maxTokens
    this.#buffers = buffers
    this.#widths = widths
  }

  /** Collective: every rank asks for the same buffers, but for the widths of those that are its `own`. */
  static async create<Name extends string>(
    comm: Communicator,
    maxTokens: number,
    specs: Record<Name, BufferSpec>,
  ): Promise<Workspace<Name>> {
    checkInteger('maxTokens', maxTokens, 1)
    const buffers: Partial<Record<Name, Tensor>> = {}
    const widths: Partial<Record<Name, number | undefined>> = {}
    for (const name of Object.keys(specs) as Name[]) {
      const { width, dtype = 'float32', shared = false, own } = specs[name]
      const shape = [maxTokens * (width ?? 1)]
      buffers[name] = own ? Tensor.empty(shape, { dtype, device: own }) : await comm.allocate(shape, { dtype, shared })
      widths[name] = width
    }
    return new Workspace(maxTokens, buffers as Record<Name, Tensor>, widths as Record<Name, number | undefined>)
  }

  /** The same memory with narrower rows: for layers whose shards differ in size. */
  narrowed(widths: { readonly [name in Name]?: number }): Workspace<Name> {
    const shares = Object.entries<Tensor>(this.#buffers).map(([name, buffer]) => [name, buffer.share()])
    return new Workspace(this.maxTokens, Object.fromEntries(shares) as Record<Name, Tensor>, { ...this.#widths, ...widths })
  }

  /** Every buffer's first `tokens` rows. The views belong to the workspace. */
  rows(tokens: number): Readonly<Record<Name, Tensor>> {
    const known = this.#views.get(tokens)
    if (known) return known
    if (!Number.isInteger(tokens) || tokens < 1 || tokens > this.maxTokens) {
      throw new ArgumentError(`Expected 1 to ${this.maxTokens} tokens for one step but received ${tokens}; feed longer inputs in parts`)
    }
    for (const [count, views] of this.#views) if (count !== 1) this.#drop(count, views)
    const views = Object.fromEntries((Object.keys(this.#buffers) as Name[]).map((name) => [name, this.#view(name, tokens)]))
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

  #view(name: Name, tokens: number): Tensor {
    const width = this.#widths[name]
    using part = this.#buffers[name].narrow(0, 0, tokens * (width ?? 1))
    return part.reshape(width === undefined ? [tokens] : [tokens, width])
  }

  #drop(count: number, views: Record<Name, Tensor>): void {
    for (const view of Object.values<Tensor>(views)) view.dispose()
    this.#views.delete(count)
  }
}
