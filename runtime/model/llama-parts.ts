// The layers of a Llama on one rank: which parts of which tensors they hold, and the activations they share.
import type { Communicator } from '../comm/communicator.ts'
import { ModelFormatError } from '../core/errors.ts'
import type { Tensor } from '../core/tensor.ts'
import { type Span, slotsOf } from '../core/tree.ts'
import type { Device } from '../device/device.ts'
import { type HeadNorms, type KvCache, ParallelAttention } from '../nn/attention.ts'
import { type BlockCut, blockCut, ColumnParallelLinear, RowParallelLinear } from '../nn/linear.ts'
import { ParallelMlp } from '../nn/mlp.ts'
import type { Norm } from '../nn/partial.ts'
import { VocabParallelEmbedding, VocabParallelHead } from '../nn/vocab.ts'
import { Workspace } from '../nn/workspace.ts'
import type { RankShard, ShardPlan } from '../scheduler/plan.ts'
import { type LlamaConfig, ropeFrequencies } from './config.ts'
import type { Part, ShardReader } from './shards.ts'
import type { Weights } from './weights.ts'

export interface Layer {
  /** Norms the residual stream before attention, and before the MLP. */
  attentionNorm: Norm
  mlpNorm: Norm
  attention: ParallelAttention
  mlp: ParallelMlp
  cache: KvCache
}

export type Buffers =
  | 'ids'
  | 'residual'
  | 'hidden'
  | 'embedded'
  | 'projected'
  | 'reduced'
  | 'qkv'
  | 'q'
  | 'attended'
  | 'gateUp'
  | 'activated'
  | 'logits'

export interface LlamaParts {
  embedding: VocabParallelEmbedding
  layers: Layer[]
  finalNorm: Norm
  head: VocabParallelHead
  workspace: Workspace<Buffers>
  /** What normed heads need besides. */
  scratch: HeadNorms['scratch'] | undefined
  tensors: Tensor[]
}

/** The cuts of the two row-parallel products, where their sums are to have the same bits for every number of ranks. */
export interface LlamaCuts {
  block: number
  out: BlockCut
  down: BlockCut
}

export interface PartsContext {
  config: LlamaConfig
  shards: ShardPlan
  cuts: LlamaCuts | undefined
  capacity: number
  reader: ShardReader
  weights: Weights
  comm: Communicator
  device: Device
}

/** @throws ERR_ARGUMENT where a rank's part begins inside a block. */
export function cutsOf({ headDim }: LlamaConfig, { ranks }: ShardPlan, block: number): LlamaCuts {
  const heads = ranks.map(({ heads }): Span => ({ start: heads.start * headDim, count: heads.count * headDim }))
  const columns = ranks.map(({ mlp }) => mlp)
  return { block, out: blockCut(heads, block), down: blockCut(columns, block) }
}

/** Weights of a rank's matrices, for progress. */
export function shardElements(config: LlamaConfig, shards: ShardPlan, rank: number): number {
  const { heads, kvHeads, mlp } = shards.ranks[rank] as RankShard
  const rows = (2 * heads.count + 2 * kvHeads.count) * config.headDim + 3 * mlp.count
  return config.hiddenSize * (config.layers * rows + (config.tieEmbeddings ? 1 : 2) * shards.vocabRows)
}

export async function loadParts(context: PartsContext, maxTokens: number): Promise<LlamaParts> {
  const { config, shards, cuts, capacity, reader, weights, comm, device } = context
  const { hiddenSize: hidden, vocabSize, headDim: dim, rmsNormEps: eps } = config
  const shard = shards.ranks[comm.rank] as RankShard
  const vocab = (name: string): Part[] => [{ name, shape: [vocabSize, hidden], ...shard.vocab }]
  const norm = async (name: string): Promise<Norm> => ({ weight: await reader.sharedVector(name, [hidden]), eps })

  const tableRows = await reader.rows(vocab('model.embed_tokens.weight'), shards.vocabRows)
  const headRows = config.tieEmbeddings ? tableRows : await reader.rows(vocab(headName(weights)), shards.vocabRows)
  const rope = await reader.shared([capacity, dim / 2, 2], () => ropeTable(config, capacity))
  const scratch = config.qkNorm ? await headScratch(comm, maxTokens, shard, dim) : undefined
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
      attention: await loadAttention(context, `${name}.self_attn`, rope, scratch),
      mlp: await loadMlp(context, `${name}.mlp`),
      cache: { keys: await cache(), values: await cache() },
    })
  }
  const finalNorm = await norm('model.norm.weight')
  const workspace = await Workspace.create<Buffers>(comm, maxTokens, {
    ids: { dtype: 'uint32', shared: true },
    residual: { width: hidden, shared: true },
    hidden: { width: hidden, shared: true },
    embedded: { width: hidden },
    projected: { width: hidden * (cuts ? slotsOf(cuts.out.spans) : 1) },
    reduced: { width: hidden * (cuts ? slotsOf(cuts.down.spans) : 1) },
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
    head: new VocabParallelHead(comm, device, headRows, { block: cuts?.block }),
    workspace,
    scratch,
    tensors: reader.tensors,
  }
}

async function loadAttention(
  { config, shards, cuts, reader, comm, device }: PartsContext,
  name: string,
  rope: Tensor,
  scratch: HeadNorms['scratch'] | undefined,
): Promise<ParallelAttention> {
  const { hiddenSize: hidden, heads, kvHeads, headDim: dim, rmsNormEps: eps } = config
  const shard = shards.ranks[comm.rank] as RankShard
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
  const norm = async (kind: 'q' | 'k') => ({ weight: await reader.sharedVector(`${name}.${kind}_norm.weight`, [dim]), eps })
  const norms = scratch && { q: await norm('q'), k: await norm('k'), scratch }
  const shape = { heads: shard.heads.count, kvHeads: shard.kvHeads.count, dim, window: config.slidingWindow ?? 0 }
  return new ParallelAttention(
    device,
    shape,
    new ColumnParallelLinear(device, qkv, qkvBias, { block: cuts?.block }),
    new RowParallelLinear(comm, device, out, outBias, cuts?.out),
    rope,
    norms,
  )
}

function headScratch(comm: Communicator, maxTokens: number, { heads, kvHeads }: RankShard, dim: number): Promise<HeadNorms['scratch']> {
  const width = kvHeads.count * dim
  return Workspace.create(comm, maxTokens, { normed: { width: heads.count * dim + 2 * width }, keys: { width }, values: { width } })
}

async function loadMlp({ config, shards, cuts, reader, comm, device }: PartsContext, name: string): Promise<ParallelMlp> {
  const { hiddenSize: hidden, intermediateSize: columns, mlpBias } = config
  const { mlp } = shards.ranks[comm.rank] as RankShard
  const part = (kind: string, leaf: string, rest: number[]): Part => ({
    name: `${name}.${kind}_proj.${leaf}`,
    shape: [columns, ...rest],
    ...mlp,
  })
  const gateUp = await reader.rows([part('gate', 'weight', [hidden]), part('up', 'weight', [hidden])])
  const gateUpBias = mlpBias ? await reader.vector([part('gate', 'bias', []), part('up', 'bias', [])]) : undefined
  const down = await reader.columns({ name: `${name}.down_proj.weight`, shape: [hidden, columns], ...mlp })
  const downBias = mlpBias ? await reader.sharedVector(`${name}.down_proj.bias`, [hidden]) : undefined
  return new ParallelMlp(
    device,
    new ColumnParallelLinear(device, gateUp, gateUpBias, { block: cuts?.block }),
    new RowParallelLinear(comm, device, down, downBias, cuts?.down),
  )
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
