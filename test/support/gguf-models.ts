// Small models as GGUF files made in memory: metadata and tensors as llama.cpp writes them, with random weights.
import { floats, ggufFile, type RawGguf, type RawGgufTensor, type RawValue } from './gguf-files.ts'
import type { Random } from './random.ts'

export type Metadata = Record<string, RawValue | undefined>

export const LLAMA: Metadata = {
  'general.architecture': [8, 'llama'],
  'llama.context_length': [4, 512],
  'llama.embedding_length': [4, 64],
  'llama.block_count': [4, 2],
  'llama.feed_forward_length': [4, 96],
  'llama.attention.head_count': [4, 4],
  'llama.attention.head_count_kv': [4, 2],
  'llama.attention.layer_norm_rms_epsilon': [6, 1e-5],
  'llama.rope.freq_base': [6, 5e5],
  'tokenizer.ggml.model': [8, 'gpt2'],
  'tokenizer.ggml.pre': [8, 'gpt-2'],
  'tokenizer.ggml.tokens': [9, [8, ['a', 'b', 'ab', '<s>', '</s>']]],
  'tokenizer.ggml.token_type': [9, [5, [1, 1, 1, 3, 3]]],
  'tokenizer.ggml.merges': [9, [8, ['a b']]],
  'tokenizer.ggml.bos_token_id': [4, 3],
  'tokenizer.ggml.eos_token_id': [4, 4],
}

/** LLAMA's keys under the name of another architecture. */
export function metadataOf(architecture: string, over: Metadata = {}): Metadata {
  const renamed = Object.entries(LLAMA).map(([key, value]) => [key.replace(/^llama\./, `${architecture}.`), value])
  return { ...Object.fromEntries(renamed), 'general.architecture': [8, architecture], ...over }
}

/** Tensors of LLAMA's shape, F32, by name; `over` adds or, with null, removes some. */
export function tensorsOf(random: Random, over: Record<string, RawGgufTensor | null> = {}): Map<string, RawGgufTensor> {
  const tensors = new Map<string, RawGgufTensor>()
  const add = (name: string, ...dims: number[]) => {
    tensors.set(name, floats(name, dims, random.floats(dims.reduce((a, b) => a * b, 1))))
  }
  add('token_embd.weight', 64, 8)
  add('output_norm.weight', 64)
  add('output.weight', 64, 8)
  for (const layer of [0, 1]) {
    for (const norm of ['attn_norm', 'ffn_norm']) add(`blk.${layer}.${norm}.weight`, 64)
    for (const part of ['attn_q', 'attn_output']) add(`blk.${layer}.${part}.weight`, 64, 64)
    for (const part of ['attn_k', 'attn_v']) add(`blk.${layer}.${part}.weight`, 64, 32)
    for (const part of ['ffn_gate', 'ffn_up']) add(`blk.${layer}.${part}.weight`, 64, 96)
    add(`blk.${layer}.ffn_down.weight`, 96, 64)
  }
  for (const [name, tensor] of Object.entries(over)) {
    if (tensor) tensors.set(name, tensor)
    else tensors.delete(name)
  }
  return tensors
}

export function modelFile(metadata: Metadata, tensors: Map<string, RawGgufTensor>, raw: RawGguf = {}): Uint8Array<ArrayBuffer> {
  const present = Object.entries(metadata).filter((entry): entry is [string, RawValue] => entry[1] !== undefined)
  return ggufFile({ metadata: present, tensors: [...tensors.values()], ...raw })
}
