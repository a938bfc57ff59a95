// The layers of a Llama on one rank: which parts of which tensors they hold, and the activations they share.
import type { Communicator } from '../comm/communicator.ts'
import type { Tensor } from '../core/tensor.ts'
import type { Span } from '../core/tree.ts'
import type { Device } from '../device/device.ts'
import { type HeadNorms, type KvCache, ParallelAttention } from '../nn/attention.ts'
import { type BlockCut, blockCut, ColumnParallelLinear, type Rounding, RowParallelLinear } from '../nn/linear.ts'
import { ParallelMlp } from '../nn/mlp.ts'
import type { Norm } from '../nn/partial.ts'
import { VocabParallelEmbedding, VocabParallelHead } from '../nn/vocab.ts'
import { Workspace } from '../nn/workspace.ts'
import type { LayerShard, RankShard, ShardPlan } from '../scheduler/plan.ts'
import { type LlamaConfig, ropeFrequencies } from './config.ts'
import { type Alike, LayerActivations, type LayerBuffers } from './llama-activations.ts'
import { EMBEDDING, headName } from './matrix-types.ts'
import type { Part, ShardReader } from './shards.ts'
import type { Weights } from './weights.ts'

export interface Layer {
  /** Norms the residual stream before attention, and before the MLP. */
  attentionNorm: Norm
  mlpNorm: Norm
  attention: ParallelAttention
  mlp: ParallelMlp
  cache: KvCache
  /** Memory that all layers use, in the widths of this one. */
  workspace: Workspace<LayerBuffers>
}

export type Buffers = 'ids' | 'position' | 'residual' | 'hidden' | 'embedded' | 'logits'

export interface LlamaParts {
  embedding: VocabParallelEmbedding
  layers: Layer[]
  finalNorm: Norm
  head: VocabParallelHead
  workspace: Workspace<Buffers>
  /** Memory for activations, `workspace` included. */
  workspaces: Disposable[]
  tensors: Tensor[]
}

/** The cuts of each layer's two row-parallel products, where their sums are to have the same bits for every number of ranks. */
export interface LlamaCuts {
  block: number
  layers: { out: BlockCut; down: BlockCut }[]
}

export interface PartsContext {
  config: LlamaConfig
  shards: ShardPlan
  cuts: LlamaCuts | undefined
  rounding: Rounding
  capacity: number
  reader: ShardReader
  weights: Weights
  comm: Communicator
  device: Device
  /** Receives what is to be disposed of besides the reader's tensors. */
  workspaces: Disposable[]
}

/** @throws ERR_ARGUMENT where a rank's part begins inside a block. */
export function cutsOf({ headDim, layers }: LlamaConfig, { ranks }: ShardPlan, block: number): LlamaCuts {
  const cuts = Array.from({ length: layers }, (_, i) => {
    const shards = ranks.map(({ layers }) => layers[i] as LayerShard)
    const heads = shards.map(({ heads }): Span => ({ start: heads.start * headDim, count: heads.count * headDim }))
    const columns = shards.map(({ mlp }) => mlp)
    return { out: blockCut(heads, block), down: blockCut(columns, block) }
  })
  return { block, layers: cuts }
}

function alikeOf({ ranks }: ShardPlan): Alike {
  const same = (count: (rank: RankShard) => readonly number[]): boolean => new Set(ranks.map((rank) => String(count(rank)))).size === 1
  return {
    attention: same(({ layers }) => layers.flatMap(({ heads, kvHeads }) => [heads.count, kvHeads.count])),
    mlp: same(({ layers }) => layers.map(({ mlp }) => mlp.count)),
    vocab: same(({ vocab }) => [vocab.count]),
  }
}

export async function loadParts(context: PartsContext, maxTokens: number): Promise<LlamaParts> {
  const { config, shards, cuts, rounding, capacity, reader, weights, comm, device } = context
  const { hiddenSize: hidden, vocabSize, headDim: dim, rmsNormEps: eps } = config
  const shard = shards.ranks[comm.rank] as RankShard
  const alike = alikeOf(shards)
  const vocab = (name: string): Part[] => [{ name, shape: [vocabSize, hidden], ...shard.vocab }]
  const portable = cuts !== undefined
  const norm = async (name: string): Promise<Norm> => ({ weight: await reader.sharedVector(name, [hidden]), eps, portable })

  const [tableRows] = (await reader.rows(vocab(EMBEDDING), alike.vocab)) as [Tensor]
  const [headRows] = config.tieEmbeddings ? [tableRows] : ((await reader.rows(vocab(headName(weights)), alike.vocab)) as [Tensor])
  const rope = await reader.shared([capacity, dim / 2, 2], () => ropeTable(config, capacity))
  const activations = await LayerActivations.create(context, shard, alike, maxTokens)
  context.workspaces.push(activations)
  const layers: Layer[] = []
  for (let i = 0; i < config.layers; i++) {
    const name = `model.layers.${i}`
    const own = shard.layers[i] as LayerShard
    const cache = (): Promise<Tensor> => reader.allocate([capacity, own.kvHeads.count * dim], 'float32', alike.attention)
    const { workspace, norms } = activations.of(i)
    layers.push({
      attentionNorm: await norm(`${name}.input_layernorm.weight`),
      mlpNorm: await norm(`${name}.post_attention_layernorm.weight`),
      attention: await loadAttention(context, i, alike.attention, rope, norms),
      mlp: await loadMlp(context, i, alike.mlp),
      cache: { keys: await cache(), values: await cache() },
      workspace,
    })
  }
  const finalNorm = await norm('model.norm.weight')
  const workspace = await Workspace.create<Buffers>(comm, maxTokens, {
    ids: { dtype: 'uint32', shared: true },
    position: { dtype: 'uint32', shared: true },
    residual: { width: hidden, shared: true },
    hidden: { width: hidden, shared: true },
    embedded: { width: hidden },
    logits: { width: shard.vocab.count, own: alike.vocab ? undefined : device },
  })
  context.workspaces.push(workspace)
  return {
    embedding: new VocabParallelEmbedding(comm, device, tableRows, shard.vocab.start),
    layers,
    finalNorm,
    head: new VocabParallelHead(comm, device, headRows, { block: cuts?.block, ...rounding }),
    workspace,
    workspaces: context.workspaces,
    tensors: reader.tensors,
  }
}

async function loadAttention(
  { config, shards, cuts, rounding, reader, comm, device }: PartsContext,
  layer: number,
  alike: boolean,
  rope: Tensor,
  memory: Pick<HeadNorms, 'scratch' | 'unused'> | undefined,
): Promise<ParallelAttention> {
  const { hiddenSize: hidden, heads, kvHeads, headDim: dim, rmsNormEps: eps } = config
  const shard = layerShard(shards, comm.rank, layer)
  const name = `model.layers.${layer}.self_attn`
  const part = (kind: 'q' | 'k' | 'v', leaf: string, columns: number[]): Part => {
    const [count, span] = kind === 'q' ? [heads, shard.heads] : [kvHeads, shard.kvHeads]
    return { name: `${name}.${kind}_proj.${leaf}`, shape: [count * dim, ...columns], start: span.start * dim, count: span.count * dim }
  }
  const kinds = ['q', 'k', 'v'] as const
  const weights = kinds.map((kind) => part(kind, 'weight', [hidden]))
  const qkv = await reader.rows(weights, alike)
  const biases = kinds.map((kind) => part(kind, 'bias', []))
  const qkvBias = config.qkvBias ? await reader.vector(biases, alike) : undefined
  const [start, count] = [shard.heads.start * dim, shard.heads.count * dim]
  const out = await reader.columns({ name: `${name}.o_proj.weight`, shape: [hidden, heads * dim], start, count }, alike)
  const outBias = config.outBias ? await reader.sharedVector(`${name}.o_proj.bias`, [hidden]) : undefined
  const portable = cuts !== undefined
  const norm = async (kind: 'q' | 'k') => ({ weight: await reader.sharedVector(`${name}.${kind}_norm.weight`, [dim]), eps, portable })
  const norms = memory && { q: await norm('q'), k: await norm('k'), ...memory }
  const shape = { heads: shard.heads.count, kvHeads: shard.kvHeads.count, dim, window: config.slidingWindow ?? 0, portable }
  return new ParallelAttention(
    device,
    shape,
    new ColumnParallelLinear(device, qkv, qkvBias, { block: cuts?.block, ...rounding }),
    new RowParallelLinear(comm, device, out, outBias, cuts?.layers[layer]?.out, rounding),
    rope,
    norms,
  )
}

async function loadMlp(
  { config, shards, cuts, rounding, reader, comm, device }: PartsContext,
  layer: number,
  alike: boolean,
): Promise<ParallelMlp> {
  const { hiddenSize: hidden, intermediateSize: columns, mlpBias } = config
  const { mlp } = layerShard(shards, comm.rank, layer)
  const name = `model.layers.${layer}.mlp`
  const part = (kind: string, leaf: string, rest: number[]): Part => ({
    name: `${name}.${kind}_proj.${leaf}`,
    shape: [columns, ...rest],
    ...mlp,
  })
  const gateUp = await reader.rows([part('gate', 'weight', [hidden]), part('up', 'weight', [hidden])], alike)
  const gateUpBias = mlpBias ? await reader.vector([part('gate', 'bias', []), part('up', 'bias', [])], alike) : undefined
  const down = await reader.columns({ name: `${name}.down_proj.weight`, shape: [hidden, columns], ...mlp }, alike)
  const downBias = mlpBias ? await reader.sharedVector(`${name}.down_proj.bias`, [hidden]) : undefined
  return new ParallelMlp(
    device,
    new ColumnParallelLinear(device, gateUp, gateUpBias, { block: cuts?.block, ...rounding }),
    new RowParallelLinear(comm, device, down, downBias, cuts?.layers[layer]?.down, rounding),
    { portable: cuts !== undefined },
  )
}

function layerShard({ ranks }: ShardPlan, rank: number, layer: number): LayerShard {
  return (ranks[rank] as RankShard).layers[layer] as LayerShard
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
