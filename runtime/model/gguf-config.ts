// The shape of a model from the metadata of its GGUF file: what config.json says of one in a folder.
import { describe, ModelFormatError } from '../core/errors.ts'
import { type LlamaConfig, type ModelType, parseConfig } from './config.ts'
import type { GgufHeader } from './gguf-file.ts'
import { show } from './json.ts'
import type { RopeScaling } from './rope.ts'

const ARCHITECTURES: readonly string[] = ['llama', 'qwen2', 'qwen3'] satisfies ModelType[]

/** Settings that would change the arithmetic and are not implemented, with the values that change nothing. */
const NEUTRAL: Readonly<Record<string, readonly (number | boolean | string)[]>> = {
  'attention.causal': [true],
  'attention.clamp_kqv': [0],
  'attention.max_alibi_bias': [0],
  'attention.scale': [0],
  'attention.sliding_window_pattern': [0, 1],
  attn_logit_softcapping: [0],
  embedding_scale: [0, 1],
  final_logit_softcapping: [0],
  logit_scale: [0, 1],
  residual_scale: [0, 1],
  'rope.scaling.attn_factor': [0, 1],
  use_parallel_residual: [false],
}

/**
 * `divisors` are those of the rope frequencies, where the file has any. Throws ERR_MODEL_FORMAT naming the key, and for architectures that are
 * not read.
 */
export function ggufConfig(header: GgufHeader, divisors: readonly number[] | null): LlamaConfig {
  const { file, metadata, tensors } = header
  const architecture = metadata.get('general.architecture')
  if (typeof architecture !== 'string' || !ARCHITECTURES.includes(architecture)) {
    throw new ModelFormatError(
      `Models of architecture ${describe(architecture)} are not read; ${file} would need ${ARCHITECTURES.join(', ')}`,
    )
  }
  const get = (key: string) => scalar(header, `${architecture}.${key}`)
  refuseUnread(header, architecture, get)
  const embedding = tensors.get('token_embd.weight')?.shape
  const window = get('attention.sliding_window') ?? 0
  const token = (name: string) => scalar(header, `tokenizer.ggml.${name}_token_id`)
  const ends = ['eos', 'eot', 'eom'].map(token).filter((id) => id !== undefined)
  const json = {
    model_type: architecture,
    hidden_size: get('embedding_length'),
    intermediate_size: get('feed_forward_length'),
    num_hidden_layers: get('block_count'),
    num_attention_heads: get('attention.head_count'),
    num_key_value_heads: get('attention.head_count_kv'),
    head_dim: get('attention.key_length') ?? headDim(get('embedding_length'), get('attention.head_count')),
    vocab_size: embedding?.[0],
    rms_norm_eps: get('attention.layer_norm_rms_epsilon'),
    rope_theta: get('rope.freq_base'),
    rope_scaling: scalingOf(get),
    max_position_embeddings: get('context_length'),
    tie_word_embeddings: !tensors.has('output.weight'),
    bos_token_id: token('bos'),
    eos_token_id: ends,
  }
  const config = parse(file, json)
  const { headDim: dim, layers } = config
  for (const key of ['rope.dimension_count', 'attention.value_length']) {
    const given = get(key) ?? dim
    if (given !== dim) throw bad(header, `${architecture}.${key}`, `the head size ${dim}`, given)
  }
  if (typeof window !== 'number' || !Number.isInteger(window) || window < 0 || window > 2 ** 31) {
    throw bad(header, `${architecture}.attention.sliding_window`, 'a number of positions', window)
  }
  const biased = (...parts: string[]) => isBiased(header, parts, layers)
  return {
    ...config,
    ropeScaling: divisors ? divided(header, config, divisors) : config.ropeScaling,
    qkvBias: biased('attn_q', 'attn_k', 'attn_v'),
    outBias: biased('attn_output'),
    mlpBias: biased('ffn_gate', 'ffn_up', 'ffn_down'),
    slidingWindow: window === 0 ? null : window,
  }
}

type Get = (key: string) => number | boolean | string | undefined

function parse(file: string, json: object): LlamaConfig {
  try {
    return parseConfig(json)
  } catch (cause) {
    if (!(cause instanceof ModelFormatError)) throw cause
    throw new ModelFormatError(`The metadata of ${file}, read as a config.json: ${cause.message}`, { cause })
  }
}

function refuseUnread({ file, metadata }: GgufHeader, architecture: string, get: Get): void {
  const parts = metadata.get('split.count') ?? 1
  if (parts !== 1 && parts !== 0) {
    throw new ModelFormatError(
      `${file} is one of ${describe(parts)} parts of a model, which are not read; merge them with llama-gguf-split`,
    )
  }
  const experts = get('expert_count') ?? 0
  if (experts !== 0) throw new ModelFormatError(`Models with experts are not read; ${file} has ${describe(experts)} in each layer`)
  for (const [key, values] of Object.entries(NEUTRAL)) {
    const given = get(key)
    if (given !== undefined && !values.includes(given)) {
      throw new ModelFormatError(`The setting ${architecture}.${key} = ${describe(given)} of ${file} is not read; take another model`)
    }
  }
}

/** One value of the metadata: undefined where it is absent; of a list with a value for each layer, the one that all have. */
function scalar(header: GgufHeader, key: string): ReturnType<Get> {
  const value = header.metadata.get(key)
  if (typeof value !== 'object') return value
  const [first] = value
  if (first === undefined || value.some((other: number | string) => other !== first)) {
    throw bad(header, key, 'one value, the same for all layers,', value)
  }
  return first
}

function bad({ file }: GgufHeader, key: string, expected: string, given: unknown): ModelFormatError {
  return new ModelFormatError(`Expected ${expected} for ${key} of ${file} but received ${describe(given)}`)
}

function headDim(hidden: unknown, heads: unknown): number | undefined {
  return typeof hidden === 'number' && typeof heads === 'number' ? hidden / heads : undefined
}

/** As `rope_scaling` of a config.json. */
function scalingOf(get: Get): object | null {
  const type = get('rope.scaling.type') ?? 'none'
  return type === 'none' ? null : { rope_type: type, factor: get('rope.scaling.factor') }
}

function divided(header: GgufHeader, { headDim, ropeScaling }: LlamaConfig, divisors: readonly number[]): RopeScaling {
  const sound = divisors.length === headDim / 2 && divisors.every((divisor) => divisor > 0 && divisor < Number.POSITIVE_INFINITY)
  if (!sound || ropeScaling) {
    throw new ModelFormatError(
      `Expected ${headDim / 2} positive numbers, and no other scaling of positions, for tensor "rope_freqs.weight" of ${header.file}`,
    )
  }
  return { type: 'divisors', divisors }
}

/** Whether these parts of all layers have biases (true) or none has (false); files between the two are refused. */
function isBiased({ file, tensors }: GgufHeader, parts: readonly string[], layers: number): boolean {
  let found = 0
  for (let layer = 0; layer < layers; layer++) for (const part of parts) if (tensors.has(`blk.${layer}.${part}.bias`)) found++
  if (found !== 0 && found !== layers * parts.length) {
    throw new ModelFormatError(`${file} has biases for some of ${parts.map(show).join(', ')} of ${layers} layers; expected all or none`)
  }
  return found > 0
}
