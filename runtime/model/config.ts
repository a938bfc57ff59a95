// The shape of a model of the Llama family, read from config.json as transformers 4 and 5 write it.
import type { DType } from '../core/dtype.ts'
import { ModelFormatError } from '../core/errors.ts'
import { badConfig, flag, integer, isInteger, number } from './config-fields.ts'
import { isObject, type JsonObject, own, show } from './json.ts'
import { parseRope, type RopeScaling } from './rope.ts'

export { ropeFrequencies } from './rope.ts'
export type { RopeScaling }

export type ModelType = 'llama' | 'mistral' | 'qwen2' | 'qwen3'

export interface LlamaConfig {
  readonly modelType: ModelType
  readonly hiddenSize: number
  readonly intermediateSize: number
  readonly layers: number
  /** Query heads; a multiple of `kvHeads`. */
  readonly heads: number
  readonly kvHeads: number
  /** Even. `heads * headDim` may differ from `hiddenSize`. */
  readonly headDim: number
  readonly vocabSize: number
  readonly rmsNormEps: number
  readonly ropeTheta: number
  /** null: positions are rotated by `ropeTheta` alone. */
  readonly ropeScaling: RopeScaling | null
  /** Positions the model was trained for. */
  readonly maxPosition: number
  /** The output projection is the embedding table. */
  readonly tieEmbeddings: boolean
  /** q, k and v have biases. */
  readonly qkvBias: boolean
  /** The projection after attention has a bias. */
  readonly outBias: boolean
  readonly mlpBias: boolean
  /** Each head of q and k is normed, with weights of its own, before it turns. */
  readonly qkNorm: boolean
  /** A position sees itself and the `slidingWindow - 1` before it; null: all before it. The same in every layer. */
  readonly slidingWindow: number | null
  /** What the weights say they are stored as; null where the file does not say. Each tensor carries its own. */
  readonly dtype: DType | null
  readonly bosTokenId: number | null
  /** Empty where the file names none. */
  readonly eosTokenIds: readonly number[]
}

const ARCHITECTURES: Readonly<Record<ModelType, string>> = {
  llama: 'LlamaForCausalLM',
  mistral: 'MistralForCausalLM',
  qwen2: 'Qwen2ForCausalLM',
  qwen3: 'Qwen3ForCausalLM',
}
const READ = Object.entries(ARCHITECTURES)
  .map(([type, architecture]) => `${type} (${architecture})`)
  .join(', ')

const MAX_SIZE = 1 << 20
const MAX_LAYERS = 4096
const MAX_VOCAB = 1 << 24
const MAX_POSITION = 2 ** 31

/** Checks a parsed config.json. Throws ERR_MODEL_FORMAT naming the key, and for model families that are not read. */
export function parseConfig(json: unknown): LlamaConfig {
  if (!isObject(json)) throw new ModelFormatError(`Expected an object in config.json but received ${show(json)}`)
  const modelType = parseModelType(json)
  refuseUnread(json)
  const hiddenSize = integer(json, 'hidden_size', 1, MAX_SIZE)
  const heads = integer(json, 'num_attention_heads', 1, MAX_SIZE)
  const kvHeads = integer(json, 'num_key_value_heads', 1, heads, heads)
  if (heads % kvHeads !== 0) throw badConfig('num_key_value_heads', `a divisor of num_attention_heads (${heads})`, kvHeads)
  const layers = integer(json, 'num_hidden_layers', 1, MAX_LAYERS)
  const vocabSize = integer(json, 'vocab_size', 1, MAX_VOCAB)
  const attentionBias = (modelType === 'llama' || modelType === 'qwen3') && flag(json, 'attention_bias')
  const eosTokenIds = parseTokenIds('eos_token_id', own(json, 'eos_token_id'), vocabSize)
  const bosTokenIds = parseTokenIds('bos_token_id', own(json, 'bos_token_id'), vocabSize)
  const { theta: ropeTheta, scaling: ropeScaling } = parseRope(json)
  return {
    modelType,
    hiddenSize,
    intermediateSize: integer(json, 'intermediate_size', 1, MAX_SIZE),
    layers,
    heads,
    kvHeads,
    headDim: parseHeadDim(json, modelType, hiddenSize, heads),
    vocabSize,
    rmsNormEps: number(json, 'rms_norm_eps', (x) => x > 0 && x < 1, 'a number between 0 and 1', 1e-6),
    ropeTheta,
    ropeScaling,
    maxPosition: integer(json, 'max_position_embeddings', 1, MAX_POSITION),
    tieEmbeddings: flag(json, 'tie_word_embeddings'),
    qkvBias: attentionBias || modelType === 'qwen2',
    outBias: attentionBias,
    mlpBias: modelType === 'llama' && flag(json, 'mlp_bias'),
    qkNorm: modelType === 'qwen3',
    slidingWindow: parseSlidingWindow(json, modelType, layers),
    dtype: parseDType(json),
    bosTokenId: bosTokenIds[0] ?? null,
    eosTokenIds,
  }
}

/** A token id, a list of them or null, as `eos_token_id` of config.json and generation_config.json gives it; ids in [0, vocabSize). */
export function parseTokenIds(key: string, given: unknown, vocabSize: number): number[] {
  const ids = given === undefined || given === null ? [] : [given].flat()
  for (const id of ids) {
    if (!isInteger(id, 0, vocabSize - 1)) throw badConfig(key, `token ids in [0, ${vocabSize - 1}]`, given)
  }
  return [...new Set(ids as number[])]
}

function parseModelType(json: JsonObject): ModelType {
  const type = own(json, 'model_type')
  const architectures = own(json, 'architectures') ?? null
  const known = typeof type === 'string' && Object.hasOwn(ARCHITECTURES, type) ? (type as ModelType) : null
  if (!known)
    throw new ModelFormatError(`Models of model_type ${show(type)} (architectures ${show(architectures)}) are not read; these are: ${READ}`)
  if (architectures !== null && !(Array.isArray(architectures) && architectures.includes(ARCHITECTURES[known]))) {
    throw badConfig('architectures', `a list with ${ARCHITECTURES[known]}, as model_type is ${known},`, architectures)
  }
  return known
}

/** Settings that would change the arithmetic and are not implemented. */
function refuseUnread(json: JsonObject): void {
  const act = own(json, 'hidden_act') ?? 'silu'
  if (act !== 'silu') throw badConfig('hidden_act', '"silu"', act)
  const quantization = own(json, 'quantization_config') ?? null
  if (quantization !== null) {
    const method = isObject(quantization) ? own(quantization, 'quant_method') : quantization
    throw new ModelFormatError(
      `Weights quantized by ${show(method)} (quantization_config of config.json) are not read; take the unquantized model`,
    )
  }
}

function parseHeadDim(json: JsonObject, modelType: ModelType, hiddenSize: number, heads: number): number {
  // A qwen3 config without the key means 128: that is the default of its format.
  const fallback = modelType === 'qwen3' ? 128 : hiddenSize / heads
  if ((own(json, 'head_dim') ?? null) === null && !Number.isInteger(fallback)) {
    throw badConfig('hidden_size', `a multiple of num_attention_heads (${heads}), as head_dim is not given,`, hiddenSize)
  }
  const headDim = integer(json, 'head_dim', 2, MAX_SIZE, fallback)
  if (headDim % 2 !== 0) throw badConfig('head_dim', 'an even number', headDim)
  return headDim
}

function parseSlidingWindow(json: JsonObject, modelType: ModelType, layers: number): number | null {
  if (modelType === 'llama') return null
  // A mistral config without the key means 4096: that is the default of its format.
  if (modelType === 'mistral') return own(json, 'sliding_window') === null ? null : integer(json, 'sliding_window', 1, MAX_POSITION, 4096)
  if (!flag(json, 'use_sliding_window') || (own(json, 'sliding_window') ?? null) === null) return null
  return hasWindow(json, layers) ? integer(json, 'sliding_window', 1, MAX_POSITION) : null
}

/** Whether all layers of a qwen2 or qwen3 model have the window (true) or none has (false); models whose layers differ are refused. */
function hasWindow(json: JsonObject, layers: number): boolean {
  const first = integer(json, 'max_window_layers', 0, Number.MAX_SAFE_INTEGER, 28)
  const types = own(json, 'layer_types') ?? Array.from({ length: layers }, (_, i) => (i < first ? 'full_attention' : 'sliding_attention'))
  const kinds = Array.isArray(types) && types.length === layers ? new Set(types) : null
  if (kinds?.size !== 1 || !(kinds.has('full_attention') || kinds.has('sliding_attention'))) {
    const expected = `"full_attention" or "sliding_attention" for each of ${layers} layers (max_window_layers ${first}), the same for all,`
    throw badConfig('layer_types', expected, types)
  }
  return kinds.has('sliding_attention')
}

function parseDType(json: JsonObject): DType | null {
  const given = own(json, 'dtype') ?? own(json, 'torch_dtype') ?? null
  if (given === null || given === 'auto') return null
  const name = typeof given === 'string' ? given.replace(/^torch\./, '') : given
  if (name !== 'float32' && name !== 'float16' && name !== 'bfloat16') throw badConfig('dtype', 'float32, float16 or bfloat16', given)
  return name
}
