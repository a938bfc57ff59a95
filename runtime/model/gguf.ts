// A GGUF file as a model: its header, the model's shape, and its tensors under Hugging Face's names.
import { decodeBlocks } from '../core/blocks.ts'
import { ModelFormatError } from '../core/errors.ts'
import type { LlamaConfig } from './config.ts'
import { ggufConfig } from './gguf-config.ts'
import { type GgufHeader, type GgufTensor, readGgufHeader } from './gguf-file.ts'
import { show } from './json.ts'
import type { ByteSource, ModelFolder } from './source.ts'

export interface GgufModel {
  readonly header: GgufHeader
  readonly config: LlamaConfig
  /** By Hugging Face's names. */
  readonly tensors: ReadonlyMap<string, GgufTensor>
  /** Rows of q and k lie in pairs that turn together, as llama.cpp keeps them for this architecture. */
  readonly paired: boolean
}

/** Frequency divisors of Llama 3: part of the model's shape, kept as a tensor. */
const ROPE_DIVISORS = 'rope_freqs.weight'

const OUTER: Readonly<Record<string, string>> = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
const IN_LAYER: Readonly<Record<string, string>> = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  attn_q_norm: 'self_attn.q_norm',
  attn_k_norm: 'self_attn.k_norm',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
}
const BIASED = /^(attn_[qkv]|attn_output|ffn_(gate|up|down))$/

const known = new WeakMap<ModelFolder, Promise<GgufModel>>()

/** The model in a folder's GGUF file; read once, however many ranks ask. Throws ERR_MODEL_FORMAT where it is damaged or not read. */
export function readGguf(folder: ModelFolder): Promise<GgufModel> {
  let model = known.get(folder)
  if (!model) {
    model = openModel(folder)
    known.set(folder, model)
    model.catch(() => known.delete(folder))
  }
  return model
}

async function openModel(folder: ModelFolder): Promise<GgufModel> {
  const source = await folder.open(folder.gguf as string)
  try {
    const header = await readGgufHeader(source)
    const config = ggufConfig(header, await ropeDivisors(header, source))
    return { header, config, tensors: renamed(header, config), paired: header.metadata.get('general.architecture') === 'llama' }
  } finally {
    await source.close()
  }
}

async function ropeDivisors({ file, tensors }: GgufHeader, source: ByteSource): Promise<number[] | null> {
  const tensor = tensors.get(ROPE_DIVISORS)
  if (!tensor) return null
  if (tensor.type !== 'F32' || tensor.shape.length !== 1 || (tensor.shape[0] as number) > 1 << 16) {
    throw new ModelFormatError(
      `Expected a vector of F32 for tensor ${show(ROPE_DIVISORS)} but ${file} holds ${tensor.type} [${tensor.shape}]`,
    )
  }
  return [...decodeBlocks('F32', await source.read(tensor.begin, tensor.end - tensor.begin))]
}

function renamed({ file, tensors }: GgufHeader, { layers, qkNorm }: LlamaConfig): Map<string, GgufTensor> {
  const out = new Map<string, GgufTensor>()
  for (const [name, tensor] of tensors) {
    if (name === ROPE_DIVISORS) continue
    const [, layer, part = '', leaf] = /^blk\.(0|[1-9]\d{0,5})\.(\w+)\.(weight|bias)$/.exec(name) ?? []
    const inside = Object.hasOwn(IN_LAYER, part) && Number(layer) < layers && (leaf === 'weight' || BIASED.test(part))
    const unused = !qkNorm && /^attn_[qk]_norm$/.test(part)
    const to = Object.hasOwn(OUTER, name) ? OUTER[name] : inside && !unused ? `model.layers.${layer}.${IN_LAYER[part]}.${leaf}` : undefined
    if (to === undefined) {
      throw new ModelFormatError(
        `${file} holds the tensor ${show(name)}, which models of its architecture and ${layers} layers do not have`,
      )
    }
    out.set(to, tensor)
  }
  return out
}
