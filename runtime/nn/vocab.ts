// The two ends of a model, split over the vocabulary: the embedding that starts the residual stream, and the head that gives logits.
import type { Communicator } from '../comm/communicator.ts'
import { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import type { Rounding } from './linear.ts'
import { Partial } from './partial.ts'

/** Rows of tokens that another rank holds are zero here, so the embedding of all ranks is a Partial. Ranks may hold any number of rows. */
export class VocabParallelEmbedding {
  readonly #comm: Communicator
  readonly #device: Device
  /** [rows, hidden]: this rank's rows of the table, which may be none. */
  readonly table: Tensor
  /** The vocabulary row of table row 0. */
  readonly first: number

  constructor(comm: Communicator, device: Device, table: Tensor, first: number) {
    this.#comm = comm
    this.#device = device
    this.table = table
    this.first = first
  }

  /** ids [tokens], uint32 → Partial [tokens, hidden], float32. */
  forward(ids: Tensor, out?: Tensor): Partial {
    if (this.table.size > 0) {
      return new Partial(this.#comm, this.#device.embedding(ids, this.table, { first: this.first, ...(out && { out }) }))
    }
    const none = out ?? Tensor.empty([ids.size, this.table.shape[1] as number], { device: this.#device })
    none.setBytes(new Uint8Array(none.byteLength))
    return new Partial(this.#comm, none, undefined, { contribution: false })
  }
}

export class VocabParallelHead {
  readonly #comm: Communicator
  readonly #device: Device
  /** [rows, hidden]: this rank's rows. */
  readonly weight: Tensor
  readonly #block: number | undefined
  readonly #rounding: Rounding

  /** With `block` the bits of a logit do not depend on the number of tokens nor of ranks, and nothing is rounded. */
  constructor(comm: Communicator, device: Device, weight: Tensor, { block, activations }: { block?: number | undefined } & Rounding = {}) {
    this.#comm = comm
    this.#device = device
    this.weight = weight
    this.#block = block
    this.#rounding = { activations }
  }

  /** x [tokens, hidden] → logits [tokens, rows of all ranks] on every rank. */
  async forward(x: Tensor, out?: Tensor): Promise<Tensor> {
    const options = out ? { out } : {}
    const block = this.#block
    const own =
      block === undefined
        ? this.#device.matmul(x, this.weight, { ...options, ...this.#rounding })
        : this.#device.matmulTree(x, this.weight, { ...options, block, whole: true })
    const all = await this.#comm.allGatherV(own, { dim: -1 })
    if (!out) own.dispose()
    return all
  }
}
