// Float64 reference of the Llama, Qwen2 and Mistral models: reads a Hugging Face folder by itself and imports nothing of the library.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { add, attention, embedding, inverseFrequencies, type Llama3Scaling, matmul, rmsNorm, rope, siluMul, topK } from './reference-ops.ts'

export interface ReferenceConfig {
  modelType: 'llama' | 'qwen2' | 'mistral'
  vocab: number
  hidden: number
  intermediate: number
  layers: number
  heads: number
  kvHeads: number
  headDim: number
  eps: number
  theta: number
  scaling: Llama3Scaling | undefined
  window: number | undefined
  tied: boolean
  /** Whether q, k and v, the attention's output, and the MLP's three projections have biases. */
  bias: { qkv: boolean; o: boolean; mlp: boolean }
  /** As the file says it; the weights' own dtype is what counts. */
  dtype: string | undefined
}

export interface ReferenceState {
  /** Tokens seen so far. */
  readonly length: number
  /** Appends one token and returns the logits that follow it. */
  step(id: number): Float64Array
}

export interface ReferenceLlama {
  readonly config: ReferenceConfig
  /** Logits after each of the tokens, computed in one pass. */
  forward(ids: readonly number[]): Float64Array[]
  /** An empty sequence with a key/value cache. */
  start(): ReferenceState
  /** n greedy tokens after the prompt, and at each by how much the best logit led the second. Stops at no end token. */
  greedy(promptIds: readonly number[], n: number): { ids: number[]; margins: number[] }
}

type Json = Record<string, unknown>

function readConfig(path: string): ReferenceConfig {
  const json = JSON.parse(readFileSync(path, 'utf8')) as Json
  const fail = (why: string): never => {
    throw new Error(`${path}: ${why}`)
  }
  const number = (from: Json, key: string, otherwise?: number): number => {
    const value = from[key] ?? otherwise
    return typeof value === 'number' ? value : fail(`${key} is not a number`)
  }

  const modelType = json.model_type
  if (modelType !== 'llama' && modelType !== 'qwen2' && modelType !== 'mistral') return fail(`no reference for model_type ${modelType}`)
  if (json.hidden_act !== undefined && json.hidden_act !== 'silu') fail(`no reference for hidden_act ${json.hidden_act}`)
  if (json.use_sliding_window === true) fail('no reference for use_sliding_window')

  // Version 5 of transformers puts theta and the scaling together in rope_parameters.
  const ropeOf5 = (json.rope_parameters ?? undefined) as Json | undefined
  const ropeOf4 = (json.rope_scaling ?? undefined) as Json | undefined
  const parameters = ropeOf5 ?? ropeOf4 ?? {}
  const ropeType = parameters.rope_type ?? parameters.type ?? 'default'
  if (ropeType !== 'default' && ropeType !== 'llama3') fail(`no reference for rope_type ${ropeType}`)
  const rotated = parameters.partial_rotary_factor ?? json.partial_rotary_factor ?? 1
  if (rotated !== 1) fail(`no reference for partial_rotary_factor ${rotated}`)

  const hidden = number(json, 'hidden_size')
  const heads = number(json, 'num_attention_heads')
  const llama = modelType === 'llama'
  return {
    modelType,
    vocab: number(json, 'vocab_size'),
    hidden,
    intermediate: number(json, 'intermediate_size'),
    layers: number(json, 'num_hidden_layers'),
    heads,
    kvHeads: number(json, 'num_key_value_heads', llama ? heads : undefined),
    headDim: number(json, 'head_dim', hidden / heads),
    eps: number(json, 'rms_norm_eps', 1e-6),
    theta: number(ropeOf5?.rope_theta === undefined ? json : ropeOf5, 'rope_theta', 10000),
    scaling:
      ropeType === 'llama3'
        ? {
            factor: number(parameters, 'factor'),
            lowFreqFactor: number(parameters, 'low_freq_factor'),
            highFreqFactor: number(parameters, 'high_freq_factor'),
            originalMaxPositionEmbeddings: number(parameters, 'original_max_position_embeddings'),
          }
        : undefined,
    // An absent key means transformers' default for Mistral, 4096; null means no window.
    window: modelType === 'mistral' && json.sliding_window !== null ? number(json, 'sliding_window', 4096) : undefined,
    tied: json.tie_word_embeddings === true,
    bias: {
      qkv: modelType === 'qwen2' || (llama && json.attention_bias === true),
      o: llama && json.attention_bias === true,
      mlp: llama && json.mlp_bias === true,
    },
    dtype: (json.dtype ?? json.torch_dtype ?? undefined) as string | undefined,
  }
}

/** The value of an IEEE 754 half. */
export function decodeF16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  if (exponent === 0) return sign * fraction * 2 ** -24
  return sign * (1024 + fraction) * 2 ** (exponent - 25)
}

/** The value of a bfloat16: the upper half of a float32. */
export function decodeBF16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 7) & 255
  const fraction = bits & 127
  if (exponent === 255) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  if (exponent === 0) return sign * fraction * 2 ** -133
  return sign * (128 + fraction) * 2 ** (exponent - 134)
}

export interface ReferenceTensor {
  dtype: string
  shape: number[]
  values: Float64Array
}

/** Every tensor of a safetensors file, widened to float64. */
export function readSafetensors(path: string): Map<string, ReferenceTensor> {
  const file = readFileSync(path)
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  const headerLength = Number(view.getBigUint64(0, true))
  const header = JSON.parse(file.toString('utf8', 8, 8 + headerLength)) as Record<string, unknown>
  const tensors = new Map<string, ReferenceTensor>()
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue
    const { dtype, shape, data_offsets: range } = entry as { dtype: string; shape: number[]; data_offsets: [number, number] }
    const count = shape.reduce((product, size) => product * size, 1)
    const size = dtype === 'F32' ? 4 : 2
    if (range[1] - range[0] !== count * size) throw new Error(`${path}: ${name} has ${range[1] - range[0]} bytes for ${dtype} [${shape}]`)
    const start = 8 + headerLength + range[0]
    const values = new Float64Array(count)
    for (let i = 0; i < count; i++) {
      if (dtype === 'F32') values[i] = view.getFloat32(start + 4 * i, true)
      else if (dtype === 'F16') values[i] = decodeF16(view.getUint16(start + 2 * i, true))
      else if (dtype === 'BF16') values[i] = decodeBF16(view.getUint16(start + 2 * i, true))
      else throw new Error(`${path}: ${name} has dtype ${dtype}`)
    }
    tensors.set(name, { dtype, shape, values })
  }
  return tensors
}

interface Linear {
  weight: Float64Array
  bias: Float64Array | undefined
  inputs: number
  outputs: number
}

interface Layer {
  inputNorm: Float64Array
  q: Linear
  k: Linear
  v: Linear
  o: Linear
  postNorm: Float64Array
  gate: Linear
  up: Linear
  down: Linear
}

interface Weights {
  embed: Float64Array
  layers: Layer[]
  norm: Float64Array
  head: Float64Array
}

function readWeights(path: string, config: ReferenceConfig): Weights {
  const tensors = readSafetensors(path)
  const take = (name: string, ...shape: number[]): Float64Array => {
    const tensor = tensors.get(name)
    if (!tensor) throw new Error(`${path} has no ${name}`)
    if (`${tensor.shape}` !== `${shape}`) throw new Error(`${path}: ${name} is [${tensor.shape}], the configuration says [${shape}]`)
    tensors.delete(name)
    return tensor.values
  }
  const linear = (name: string, outputs: number, inputs: number, biased: boolean): Linear => ({
    weight: take(`${name}.weight`, outputs, inputs),
    bias: biased ? take(`${name}.bias`, outputs) : undefined,
    inputs,
    outputs,
  })
  const { hidden, intermediate, vocab, bias } = config
  const qSize = config.heads * config.headDim
  const kvSize = config.kvHeads * config.headDim

  const embed = take('model.embed_tokens.weight', vocab, hidden)
  const layers: Layer[] = []
  for (let l = 0; l < config.layers; l++) {
    const layer = `model.layers.${l}`
    layers.push({
      inputNorm: take(`${layer}.input_layernorm.weight`, hidden),
      q: linear(`${layer}.self_attn.q_proj`, qSize, hidden, bias.qkv),
      k: linear(`${layer}.self_attn.k_proj`, kvSize, hidden, bias.qkv),
      v: linear(`${layer}.self_attn.v_proj`, kvSize, hidden, bias.qkv),
      o: linear(`${layer}.self_attn.o_proj`, hidden, qSize, bias.o),
      postNorm: take(`${layer}.post_attention_layernorm.weight`, hidden),
      gate: linear(`${layer}.mlp.gate_proj`, intermediate, hidden, bias.mlp),
      up: linear(`${layer}.mlp.up_proj`, intermediate, hidden, bias.mlp),
      down: linear(`${layer}.mlp.down_proj`, hidden, intermediate, bias.mlp),
    })
  }
  const norm = take('model.norm.weight', hidden)
  const head = config.tied ? embed : take('lm_head.weight', vocab, hidden)
  // A tensor that nothing reads would mean a model that this file does not compute.
  if (config.tied) tensors.delete('lm_head.weight')
  if (tensors.size > 0) throw new Error(`${path}: nothing uses ${[...tensors.keys()].join(', ')}`)
  return { embed, layers, norm, head }
}

/** Keys and values of one layer, [capacity, kvHeads, headDim]; rows from `length` on are zero. */
interface Cache {
  k: Float64Array
  v: Float64Array
}

interface Sequence {
  length: number
  capacity: number
  caches: Cache[]
}

function grown(values: Float64Array, length: number): Float64Array {
  const out = new Float64Array(length)
  out.set(values)
  return out
}

function apply(x: Float64Array, linear: Linear, t: number): Float64Array {
  return matmul(x, linear.weight, { t, k: linear.inputs, n: linear.outputs }, linear.bias)
}

export function loadReference(dir: string): ReferenceLlama {
  const config = readConfig(join(dir, 'config.json'))
  const weights = readWeights(join(dir, 'model.safetensors'), config)
  const { hidden, intermediate, vocab, heads, kvHeads, headDim, eps, window } = config
  const frequencies = inverseFrequencies(headDim, config.theta, config.scaling)
  const kvSize = kvHeads * headDim

  const empty = (): Sequence => ({
    length: 0,
    capacity: 0,
    caches: weights.layers.map(() => ({ k: new Float64Array(0), v: new Float64Array(0) })),
  })

  const reserve = (sequence: Sequence, length: number): void => {
    if (length <= sequence.capacity) return
    sequence.capacity = Math.max(length, 2 * sequence.capacity)
    for (const cache of sequence.caches) {
      cache.k = grown(cache.k, sequence.capacity * kvSize)
      cache.v = grown(cache.v, sequence.capacity * kvSize)
    }
  }

  /** Appends the tokens and returns the logits after each. */
  const append = (sequence: Sequence, ids: readonly number[]): Float64Array[] => {
    const t = ids.length
    const start = sequence.length
    const positions = ids.map((_, row) => start + row)
    let x = embedding(ids, weights.embed, { vocab, h: hidden })
    reserve(sequence, start + t)
    weights.layers.forEach((layer, l) => {
      const cache = sequence.caches[l]!
      const normed = rmsNorm(x, layer.inputNorm, { t, h: hidden, eps })
      const q = rope(apply(normed, layer.q, t), { t, heads, headDim }, positions, frequencies)
      const k = rope(apply(normed, layer.k, t), { t, heads: kvHeads, headDim }, positions, frequencies)
      cache.k.set(k, start * kvSize)
      cache.v.set(apply(normed, layer.v, t), start * kvSize)
      const shape = { t, s: sequence.capacity, heads, kvHeads, headDim, start }
      const mixed = attention(q, cache.k, cache.v, window === undefined ? shape : { ...shape, window })
      x = add(x, apply(mixed, layer.o, t))

      const normedAgain = rmsNorm(x, layer.postNorm, { t, h: hidden, eps })
      const gate = apply(normedAgain, layer.gate, t)
      const up = apply(normedAgain, layer.up, t)
      const gateUp = new Float64Array(t * 2 * intermediate)
      for (let row = 0; row < t; row++) {
        gateUp.set(gate.subarray(row * intermediate, (row + 1) * intermediate), row * 2 * intermediate)
        gateUp.set(up.subarray(row * intermediate, (row + 1) * intermediate), row * 2 * intermediate + intermediate)
      }
      x = add(x, apply(siluMul(gateUp, { t, i: intermediate }), layer.down, t))
    })
    sequence.length += t
    const logits = matmul(rmsNorm(x, weights.norm, { t, h: hidden, eps }), weights.head, { t, k: hidden, n: vocab })
    return ids.map((_, row) => logits.slice(row * vocab, (row + 1) * vocab))
  }

  const start = (): ReferenceState => {
    const sequence = empty()
    return {
      get length() {
        return sequence.length
      },
      step: (id) => append(sequence, [id])[0]!,
    }
  }

  const greedy = (promptIds: readonly number[], n: number): { ids: number[]; margins: number[] } => {
    if (promptIds.length === 0) throw new Error('greedy needs a prompt of at least one token')
    const ids: number[] = []
    const margins: number[] = []
    const sequence = empty()
    let logits = append(sequence, promptIds).at(-1)!
    while (ids.length < n) {
      const { indices, values } = topK(logits, 2)
      ids.push(indices[0]!)
      margins.push(values[0]! - values[1]!)
      if (ids.length < n) logits = append(sequence, [indices[0]!])[0]!
    }
    return { ids, margins }
  }

  return { config, forward: (ids) => append(empty(), ids), start, greedy }
}
