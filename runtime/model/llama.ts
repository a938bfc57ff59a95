// Llama: a decoder of the Llama family split over the ranks of a group. Two fused collectives a layer, one before the first, one gather at
// the end; every rank runs the same program and holds the same residual stream.
import type { Communicator } from '../comm/communicator.ts'
import { ArgumentError, checkInteger, ModelFormatError } from '../core/errors.ts'
import type { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import { type KvCache, ParallelAttention } from '../nn/attention.ts'
import { ColumnParallelLinear, RowParallelLinear } from '../nn/linear.ts'
import { ParallelMlp } from '../nn/mlp.ts'
import type { Norm, Partial } from '../nn/partial.ts'
import { VocabParallelEmbedding, VocabParallelHead } from '../nn/vocab.ts'
import { Workspace } from '../nn/workspace.ts'
import { plan, type RankShard, type ShardPlan } from '../scheduler/plan.ts'
import { type LlamaConfig, ropeFrequencies } from './config.ts'
import { LOAD_TIMEOUT_MS, type Part, ShardReader } from './shards.ts'
import type { Weights } from './weights.ts'

export interface LlamaOptions {
  /** Positions the key-value cache holds; defaults to the model's own, at most 2048. */
  capacity?: number
  /** Tokens of one step; longer prompts are fed in parts of this size. Defaults to 256. */
  maxTokens?: number
  /** Told while weights are read: bytes this rank has loaded so far. */
  onProgress?: (progress: { loaded: number }) => void
}

interface Layer {
  /** Norms the residual stream before attention, and before the MLP. */
  attentionNorm: Norm
  mlpNorm: Norm
  attention: ParallelAttention
  mlp: ParallelMlp
  cache: KvCache
}

type Buffers = 'ids' | 'residual' | 'hidden' | 'partial' | 'qkv' | 'q' | 'attended' | 'gateUp' | 'activated' | 'logits'

interface Parts {
  embedding: VocabParallelEmbedding
  layers: Layer[]
  finalNorm: Norm
  head: VocabParallelHead
  workspace: Workspace<Buffers>
  tensors: Tensor[]
}

export class Llama implements Disposable {
  readonly config: LlamaConfig
  readonly plan: ShardPlan
  readonly capacity: number
  readonly #parts: Parts
  #length = 0
  #lastTokens = 1

  private constructor(config: LlamaConfig, shards: ShardPlan, capacity: number, parts: Parts) {
    this.config = config
    this.plan = shards
    this.capacity = capacity
    this.#parts = parts
  }

  /**
   * Reads this rank's shards; collective. @throws ERR_ARGUMENT where the model does not split evenly over the ranks, ERR_MODEL_FORMAT
   * naming the tensor where the files are not what config.json says.
   */
  static async load(
    config: LlamaConfig,
    weights: Weights,
    { comm, device }: { comm: Communicator; device: Device },
    { capacity = Math.min(config.maxPosition, 2048), maxTokens = 256, onProgress = () => {} }: LlamaOptions = {},
  ): Promise<Llama> {
    checkInteger('capacity', capacity, 1)
    checkInteger('maxTokens', maxTokens, 1)
    const shards = plan(config, { tp: comm.size })
    let loaded = 0
    const reader = new ShardReader(comm, weights, (bytes) => {
      loaded += bytes
      onProgress({ loaded })
    })
    try {
      const parts = await loadParts(config, shards, capacity, Math.min(maxTokens, capacity), reader, weights, comm, device)
      await comm.barrier({ timeoutMs: LOAD_TIMEOUT_MS })
      return new Llama(config, shards, capacity, parts)
    } catch (error) {
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
      const hidden = await this.#decode(part)
      last = all || final ? await this.#logits(hidden, part.length, all) : undefined
      if (all && last) rows.push((await last.data()) as Float32Array)
    }
    return new Logits(last as Tensor, vocabSize, all ? rows : null)
  }

  dispose(): void {
    this.#parts.workspace.dispose()
    for (const tensor of this.#parts.tensors) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** The normed hidden states after the last layer, [tokens, hidden]; a view of the workspace. */
  async #decode(ids: readonly number[]): Promise<Tensor> {
    const { embedding, layers, finalNorm, workspace } = this.#parts
    const buffers = workspace.rows(ids.length)
    const { residual, hidden } = buffers
    const start = this.#length
    buffers.ids.set(ids)
    residual.setBytes(new Uint8Array(residual.byteLength))
    let partial: Partial = embedding.forward(buffers.ids, buffers.partial)
    for (const layer of layers) {
      await partial.addNorm(residual, layer.attentionNorm, hidden)
      partial = layer.attention.forward(hidden, layer.cache, start, buffers)
      await partial.addNorm(residual, layer.mlpNorm, hidden)
      partial = layer.mlp.forward(hidden, buffers)
    }
    await partial.addNorm(residual, finalNorm, hidden)
    this.#length += ids.length
    this.#lastTokens = ids.length
    return hidden
  }

  async #logits(hidden: Tensor, tokens: number, all: boolean): Promise<Tensor> {
    const { head, workspace } = this.#parts
    if (all) return head.forward(hidden, workspace.rows(tokens).logits)
    using row = hidden.narrow(0, tokens - 1, 1)
    return head.forward(row, workspace.rows(1).logits)
  }
}

/** Logits on every rank. Columns beyond the vocabulary are the shards' padding, and are cut off here. */
export class Logits implements Disposable {
  readonly tensor: Tensor
  readonly #vocabSize: number
  readonly #rows: readonly Float32Array[] | null

  constructor(tensor: Tensor, vocabSize: number, rows: readonly Float32Array[] | null) {
    this.tensor = tensor
    this.#vocabSize = vocabSize
    this.#rows = rows
  }

  /** [rows, vocab] as rows of numbers; waits for the device. */
  async rows(): Promise<Float32Array[]> {
    const width = this.tensor.shape[1] as number
    const blocks = this.#rows ?? [(await this.tensor.data()) as Float32Array]
    return blocks.flatMap((block) =>
      Array.from({ length: block.length / width }, (_, i) => block.subarray(i * width, i * width + this.#vocabSize)),
    )
  }

  /** The last token's logits, [vocab]. */
  async last(): Promise<Float32Array> {
    return (await this.rows()).at(-1) as Float32Array
  }

  dispose(): void {
    this.tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

async function loadParts(
  config: LlamaConfig,
  shards: ShardPlan,
  capacity: number,
  maxTokens: number,
  reader: ShardReader,
  weights: Weights,
  comm: Communicator,
  device: Device,
): Promise<Parts> {
  const { hiddenSize: hidden, vocabSize, headDim: dim, rmsNormEps: eps } = config
  const shard = shards.ranks[comm.rank] as RankShard
  const vocab = (name: string): Part[] => [{ name, shape: [vocabSize, hidden], ...shard.vocab }]
  const norm = async (name: string): Promise<Norm> => ({ weight: await reader.sharedVector(name, [hidden]), eps })

  const tableRows = await reader.rows(vocab('model.embed_tokens.weight'), shards.vocabRows)
  const headRows = config.tieEmbeddings ? tableRows : await reader.rows(vocab(headName(weights)), shards.vocabRows)
  const rope = await reader.shared([capacity, dim / 2, 2], () => ropeTable(config, capacity))
  const layers: Layer[] = []
  for (let i = 0; i < config.layers; i++) {
    const name = `model.layers.${i}`
    const cache = async (): Promise<Tensor> => {
      const tensor = await comm.allocate([capacity, shard.kvHeads.count * dim])
      reader.tensors.push(tensor)
      return tensor
    }
    layers.push({
      attentionNorm: await norm(`${name}.input_layernorm.weight`),
      mlpNorm: await norm(`${name}.post_attention_layernorm.weight`),
      attention: await loadAttention(config, shard, `${name}.self_attn`, reader, comm, device, rope),
      mlp: await loadMlp(config, shard, `${name}.mlp`, reader, comm, device),
      cache: { keys: await cache(), values: await cache() },
    })
  }
  const finalNorm = await norm('model.norm.weight')
  const workspace = await Workspace.create<Buffers>(comm, maxTokens, {
    ids: { dtype: 'uint32', shared: true },
    residual: { width: hidden, shared: true },
    hidden: { width: hidden, shared: true },
    partial: { width: hidden },
    qkv: { width: (shard.heads.count + 2 * shard.kvHeads.count) * dim },
    q: { width: shard.heads.count * dim },
    attended: { width: shard.heads.count * dim },
    gateUp: { width: 2 * shard.mlp.count },
    activated: { width: shard.mlp.count },
    logits: { width: shards.vocabRows },
  })
  return {
    embedding: new VocabParallelEmbedding(comm, device, tableRows, comm.rank * shards.vocabRows),
    layers,
    finalNorm,
    head: new VocabParallelHead(comm, device, headRows),
    workspace,
    tensors: reader.tensors,
  }
}

async function loadAttention(
  config: LlamaConfig,
  shard: RankShard,
  name: string,
  reader: ShardReader,
  comm: Communicator,
  device: Device,
  rope: Tensor,
): Promise<ParallelAttention> {
  const { hiddenSize: hidden, heads, kvHeads, headDim: dim } = config
  const part = (kind: 'q' | 'k' | 'v', leaf: string, columns: number[]): Part => {
    const [count, span] = kind === 'q' ? [heads, shard.heads] : [kvHeads, shard.kvHeads]
    return { name: `${name}.${kind}_proj.${leaf}`, shape: [count * dim, ...columns], start: span.start * dim, count: span.count * dim }
  }
  const kinds = ['q', 'k', 'v'] as const
  const qkv = await reader.rows(kinds.map((kind) => part(kind, 'weight', [hidden])))
  const qkvBias = config.qkvBias ? await reader.vector(kinds.map((kind) => part(kind, 'bias', []))) : undefined
  const out = await reader.columns({
    name: `${name}.o_proj.weight`,
    shape: [hidden, heads * dim],
    start: shard.heads.start * dim,
    count: shard.heads.count * dim,
  })
  const outBias = config.outBias ? await reader.sharedVector(`${name}.o_proj.bias`, [hidden]) : undefined
  const shape = { heads: shard.heads.count, kvHeads: shard.kvHeads.count, dim, window: config.slidingWindow ?? 0 }
  return new ParallelAttention(
    device,
    shape,
    new ColumnParallelLinear(device, qkv, qkvBias),
    new RowParallelLinear(comm, device, out, outBias),
    rope,
  )
}

async function loadMlp(
  config: LlamaConfig,
  shard: RankShard,
  name: string,
  reader: ShardReader,
  comm: Communicator,
  device: Device,
): Promise<ParallelMlp> {
  const { hiddenSize: hidden, intermediateSize: columns, mlpBias } = config
  const part = (kind: string, leaf: string, rest: number[]): Part => ({
    name: `${name}.${kind}_proj.${leaf}`,
    shape: [columns, ...rest],
    ...shard.mlp,
  })
  const gateUp = await reader.rows([part('gate', 'weight', [hidden]), part('up', 'weight', [hidden])])
  const gateUpBias = mlpBias ? await reader.vector([part('gate', 'bias', []), part('up', 'bias', [])]) : undefined
  const down = await reader.columns({ name: `${name}.down_proj.weight`, shape: [hidden, columns], ...shard.mlp })
  const downBias = mlpBias ? await reader.sharedVector(`${name}.down_proj.bias`, [hidden]) : undefined
  return new ParallelMlp(device, new ColumnParallelLinear(device, gateUp, gateUpBias), new RowParallelLinear(comm, device, down, downBias))
}

function headName(weights: Weights): string {
  const name = 'lm_head.weight'
  if (!weights.has(name)) {
    throw new ModelFormatError(
      `The weights hold no tensor "${name}", and config.json does not tie it to the embedding (tie_word_embeddings)`,
    )
  }
  return name
}

/** (cos, sin) of position times frequency, computed in float64, as float32 bytes [positions, headDim / 2, 2]. */
export function ropeTable(config: LlamaConfig, positions: number): Uint8Array {
  const frequencies = ropeFrequencies(config)
  const table = new Float32Array(positions * frequencies.length * 2)
  let at = 0
  for (let position = 0; position < positions; position++) {
    for (const frequency of frequencies) {
      table[at++] = Math.cos(position * frequency)
      table[at++] = Math.sin(position * frequency)
    }
  }
  return new Uint8Array(table.buffer)
}
