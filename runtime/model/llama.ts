// Llama: a decoder of the Llama family split over the ranks of a group. Two fused collectives a layer, one before the first, one gather at
// the end; every rank runs the same program and holds the same residual stream.
import type { Communicator } from '../comm/communicator.ts'
import type { Recording } from '../comm/recording.ts'
import { ArgumentError, BackendUnavailableError, CollectiveMismatchError, checkInteger, invalidArgument } from '../core/errors.ts'
import { Tensor } from '../core/tensor.ts'
import type { Activations, Device } from '../device/device.ts'
import { checkActivations } from '../device/operands.ts'
import { unportable } from '../device/portability.ts'
import type { Partial } from '../nn/partial.ts'
import { type MatrixTypes, type PlanOptions, plan, type ShardPlan } from '../scheduler/plan.ts'
import type { LlamaConfig } from './config.ts'
import { cutsOf, type LlamaParts, loadParts } from './llama-parts.ts'
import { matrixTypes } from './matrix-types.ts'
import { LOAD_TIMEOUT_MS, ShardReader } from './shards.ts'
import type { Weights } from './weights.ts'

/** What says how the model is cut must be alike on all ranks; see `plan`. */
export interface LlamaOptions extends Pick<PlanOptions, 'shares' | 'memory' | 'speeds' | 'collectiveSeconds'> {
  /** Positions the key-value cache holds; defaults to the model's own, at most 2048. */
  capacity?: number
  /** Tokens of one step; longer prompts are fed in parts of this size. Defaults to 256. */
  maxTokens?: number
  /**
   * `tp-invariant`: logits have the same bits for every number of ranks, every plan, every kind of device and every way to feed the prompt,
   * since all products add in the order of one tree over blocks of their inputs and every other step is defined (core/portable.ts). Costs
   * speed; each rank's part begins at a multiple of `block`.
   */
  deterministic?: 'tp-invariant' | undefined
  /** Inputs in a block of the tree, a multiple of 4; part of what defines the bits. Defaults to 32. */
  block?: number
  /** How coarsely products may round their activations, where that is faster: on the CPU. Not with `deterministic`. See Activations. */
  activations?: Activations | undefined
  /** Told while weights are read: bytes of this rank's shards loaded so far, and all of them. */
  onProgress?: (progress: { loaded: number; total: number }) => void
}

export class Llama implements Disposable {
  readonly config: LlamaConfig
  readonly plan: ShardPlan
  readonly capacity: number
  readonly #parts: LlamaParts
  readonly #ranks: { comm: Communicator; device: Device }
  #length = 0
  #lastTokens = 1
  /** A step of one token, where the group records, and where it leaves its logits. */
  #step: { recording: Recording; logits: Tensor } | undefined
  /** What the last step's logits were given out as, while they lie there. */
  #lent: Logits | undefined

  private constructor(
    config: LlamaConfig,
    shards: ShardPlan,
    capacity: number,
    parts: LlamaParts,
    ranks: { comm: Communicator; device: Device },
  ) {
    this.config = config
    this.plan = shards
    this.capacity = capacity
    this.#parts = parts
    this.#ranks = ranks
  }

  /**
   * Reads this rank's shards; collective. @throws ERR_ARGUMENT for shares that make no sense, ERR_COLLECTIVE_MISMATCH where ranks gave
   * different ones, ERR_MODEL_FORMAT naming the tensor where the files are not what config.json says.
   */
  static async load(
    config: LlamaConfig,
    weights: Weights,
    { comm, device }: { comm: Communicator; device: Device },
    options: LlamaOptions = {},
  ): Promise<Llama> {
    const { capacity = Math.min(config.maxPosition, 2048), maxTokens = 256, onProgress = () => {} } = options
    const { deterministic, block = 32, shares, memory, speeds, collectiveSeconds, activations } = options
    checkInteger('capacity', capacity, 1)
    checkInteger('maxTokens', maxTokens, 1)
    if (deterministic !== undefined && deterministic !== 'tp-invariant')
      throw invalidArgument('deterministic', "'tp-invariant'", deterministic)
    if (deterministic && block % 4 !== 0) throw invalidArgument('block', 'a multiple of 4', block)
    checkActivations(activations)
    if (deterministic && activations)
      throw new ArgumentError(`Expected deterministic or activations but received both: what ${activations} rounds has other bits`)
    const types = await matrixTypes(config, weights)
    const devices = await agree(comm, { device: device.name, cut: { shares, memory, speeds }, types, activations: activations ?? 'none' })
    if (deterministic) await checkPortable(comm, device)
    const cut = { shares, memory, speeds, types, block: deterministic && block }
    const shards = plan(config, { ranks: comm.size, ...cut, capacity, devices, collectiveSeconds })
    const cuts = deterministic && cutsOf(config, shards, block)
    let loaded = 0
    const total = shards.weightBytes(comm.rank)
    const workspaces: Disposable[] = []
    const reader = new ShardReader({ comm, device }, weights, (bytes) => {
      loaded += bytes
      onProgress({ loaded, total: Math.max(loaded, total) })
    })
    try {
      const context = { config, shards, cuts, rounding: { activations }, capacity, reader, weights, comm, device, workspaces }
      const parts = await loadParts(context, Math.min(maxTokens, capacity))
      await comm.barrier({ timeoutMs: LOAD_TIMEOUT_MS })
      return new Llama(config, shards, capacity, parts, { comm, device })
    } catch (error) {
      for (const memory of workspaces) memory[Symbol.dispose]()
      for (const tensor of reader.tensors) tensor.dispose()
      throw error
    }
  }

  /** Bytes of this rank's weights and caches; what all ranks of a device share counts for each. */
  get bytes(): number {
    return this.#parts.tensors.reduce((n, tensor) => n + tensor.byteLength, 0)
  }

  /** Tokens in the key-value cache: the position of the next one. */
  get length(): number {
    return this.#length
  }

  /** The normed hidden states behind the last step's logits, [tokens, hidden], until the next step; alike on every rank. Not yours to dispose. */
  get hidden(): Tensor {
    return this.#parts.workspace.rows(this.#lastTokens).hidden
  }

  /** Forgets tokens from position `length` on. */
  truncate(length = 0): void {
    checkInteger('length', length, 0, this.#length)
    this.#length = length
  }

  /**
   * Runs the next tokens and returns the logits of the last one, [1, vocab], or with `all` of each, [tokens, vocab]; collective, with the
   * same ids on every rank. The tensor is the caller's to dispose.
   */
  async forward(ids: readonly number[], { all = false }: { all?: boolean } = {}): Promise<Logits> {
    const { vocabSize } = this.config
    if (ids.length === 0) throw new ArgumentError('Expected at least one token id but received none; start a prompt with any token')
    for (const id of ids) checkInteger('token id', id, 0, vocabSize - 1)
    if (this.#length + ids.length > this.capacity) {
      throw new ArgumentError(
        `The cache holds ${this.capacity} positions, ${this.#length} are taken and ${ids.length} more were given; load with a larger capacity`,
      )
    }
    const { maxTokens } = this.#parts.workspace
    const rows: Float32Array[] = []
    let last: Tensor | undefined
    for (let at = 0; at < ids.length; at += maxTokens) {
      const part = ids.slice(at, at + maxTokens)
      const final = at + part.length === ids.length
      last?.dispose()
      last = await this.#run(part, all ? 'all' : final ? 'last' : 'none')
      if (all && last) rows.push((await last.data()) as Float32Array)
    }
    const logits = new Logits(last as Tensor, all ? rows : null)
    if (this.#step && this.#lastTokens === 1) this.#lent = logits
    return logits
  }

  dispose(): void {
    this.#step?.recording.dispose()
    this.#step?.logits.dispose()
    this.#step = undefined
    for (const memory of this.#parts.workspaces) memory[Symbol.dispose]()
    for (const tensor of this.#parts.tensors) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** Runs the next tokens, at most maxTokens; gives the logits that are asked for. */
  async #run(ids: readonly number[], wanted: 'all' | 'last' | 'none'): Promise<Tensor | undefined> {
    const tokens = ids.length
    const logits = tokens === 1 && this.#ranks.comm.records ? await this.#recorded(ids) : await this.#plain(ids, wanted)
    this.#length += tokens
    this.#lastTokens = tokens
    return logits
  }

  async #plain(ids: readonly number[], wanted: 'all' | 'last' | 'none'): Promise<Tensor | undefined> {
    const tokens = ids.length
    this.#parts.workspace.rows(tokens).ids.set(ids)
    const hidden = await this.#decode(tokens, this.#length)
    return wanted === 'none' ? undefined : this.#logits(hidden, tokens, wanted === 'all')
  }

  /** One token, by the recording of a step: the first one makes it. */
  async #recorded(id: readonly number[]): Promise<Tensor> {
    const { comm, device } = this.#ranks
    const { ids, position } = this.#parts.workspace.rows(1)
    // The ranks of the device share these, and meet before they are read.
    if (comm.deviceRank === 0) {
      ids.set(id)
      position.set([this.#length])
    }
    this.#lent?.keep(device)
    this.#lent = undefined
    if (this.#step) await this.#step.recording.launch()
    else {
      let logits: Tensor | undefined
      const recording = await comm.record(async () => {
        logits = await this.#logits(await this.#decode(1, position), 1, false)
      })
      this.#step = { recording, logits: logits as Tensor }
    }
    return this.#step.logits.share()
  }

  /**
   * The normed hidden states after the last layer, [tokens, hidden]; a view of the workspace. The tokens are those whose ids are there, the first
   * at position `start`.
   */
  async #decode(tokens: number, start: number | Tensor): Promise<Tensor> {
    const { embedding, layers, finalNorm, workspace } = this.#parts
    const buffers = workspace.rows(tokens)
    const { residual, hidden } = buffers
    // The ranks of the device share it, and meet before it is read.
    if (this.#ranks.comm.deviceRank === 0) residual.setBytes(new Uint8Array(residual.byteLength))
    let partial: Partial = embedding.forward(buffers.ids, buffers.embedded)
    for (const layer of layers) {
      const own = layer.workspace.rows(tokens)
      await partial.addNorm(residual, layer.attentionNorm, hidden)
      partial = layer.attention.forward(hidden, layer.cache, start, { ...own, partial: own.projected })
      await partial.addNorm(residual, layer.mlpNorm, hidden)
      partial = layer.mlp.forward(hidden, { ...own, partial: own.reduced })
    }
    await partial.addNorm(residual, finalNorm, hidden)
    return hidden
  }

  async #logits(hidden: Tensor, tokens: number, all: boolean): Promise<Tensor> {
    const { head, workspace } = this.#parts
    if (all) return head.forward(hidden, workspace.rows(tokens).logits)
    using row = hidden.narrow(0, tokens - 1, 1)
    return head.forward(row, workspace.rows(1).logits)
  }
}

interface Given {
  device: string
  /** What decides how the model is cut. */
  cut: Pick<LlamaOptions, 'shares' | 'memory' | 'speeds'>
  types: MatrixTypes
  activations: string
}

/**
 * Ranks on several kinds of device have the same bits where each does as core/portable.ts says; collective. @throws ERR_BACKEND_UNAVAILABLE on all
 * ranks where one does not.
 */
async function checkPortable({ host }: Communicator, device: Device): Promise<void> {
  const kinds = await host.allGather(device.kind)
  if (new Set(kinds).size === 1) return
  const found = await host.allGather({ operation: await unportable(device), name: device.name })
  const rank = found.findIndex(({ operation }) => operation !== null)
  if (rank < 0) return
  const { operation, name } = found[rank] as (typeof found)[number]
  throw new BackendUnavailableError(
    `Rank ${rank}'s device ${name} answers ${operation} with other bits than are defined: its driver changes arithmetic. Leave out deterministic, ` +
      'or give the group devices of one kind',
    { rank },
  )
}

/** The names of the ranks' devices. Ranks that cut the model differently would add up numbers that do not belong together: they are refused. */
async function agree({ host, rank }: Communicator, own: Given): Promise<string[]> {
  const all = await host.allGather(own)
  const refuse = (of: (given: Given) => string, say: (one: string, first: string) => string): void => {
    const [first, ...others] = all.map(of) as [string, ...string[]]
    const other = others.findIndex((one) => one !== first)
    if (other < 0) return
    throw new CollectiveMismatchError(`Rank ${other + 1} ${say(others[other] as string, first)}; give all ranks the same`, { rank })
  }
  refuse(
    ({ cut }) => JSON.stringify(cut),
    (one, first) => `cuts the model by ${one} but rank 0 by ${first}`,
  )
  refuse(
    ({ types }) => JSON.stringify(types),
    () => 'keeps the weights as other types than rank 0 (quantizedAs)',
  )
  refuse(
    ({ activations }) => activations,
    (one, first) => `rounds activations to ${one} but rank 0 to ${first}`,
  )
  return all.map(({ device }) => device)
}

/** Logits on every rank. */
export class Logits implements Disposable {
  #tensor: Tensor
  readonly #rows: readonly Float32Array[] | null
  #disposed = false

  constructor(tensor: Tensor, rows: readonly Float32Array[] | null) {
    this.#tensor = tensor
    this.#rows = rows
  }

  get tensor(): Tensor {
    return this.#tensor
  }

  /** The place where they lie is about to get others: what is still needed is copied. */
  keep(device: Device): void {
    if (this.#disposed) return
    const own = Tensor.empty(this.#tensor.shape, { device })
    device.copy(this.#tensor, own)
    this.#tensor.dispose()
    this.#tensor = own
  }

  /** [rows, vocab] as rows of numbers; waits for the device. */
  async rows(): Promise<Float32Array[]> {
    const width = this.tensor.shape[1] as number
    const blocks = this.#rows ?? [(await this.tensor.data()) as Float32Array]
    return blocks.flatMap((block) => Array.from({ length: block.length / width }, (_, i) => block.subarray(i * width, (i + 1) * width)))
  }

  /** The last token's logits, [vocab]. */
  async last(): Promise<Float32Array> {
    return (await this.rows()).at(-1) as Float32Array
  }

  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
