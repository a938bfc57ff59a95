// Every family as a GGUF file: the fixtures' folders, written as llama.cpp's converter would write them, are the same models again.
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { type LlamaConfig, ropeFrequencies } from '../../runtime/model/config.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { floats, type RawGgufTensor } from '../support/gguf-files.ts'
import { LLAMA, type Metadata, modelFile } from '../support/gguf-models.ts'
import { memoryFolder } from '../support/model-files.ts'

const root = new URL('../fixtures/tiny-models/', import.meta.url)
const TYPES: Record<string, number> = { F32: 0, F16: 1, BF16: 30 }
const PARTS: Record<string, string> = {
  input_layernorm: 'attn_norm',
  post_attention_layernorm: 'ffn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}

function ggufName(name: string): string {
  const outer = {
    'model.embed_tokens.weight': 'token_embd.weight',
    'model.norm.weight': 'output_norm.weight',
    'lm_head.weight': 'output.weight',
  }
  const [, layer, part, leaf] = name.match(/^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/) ?? []
  return part === undefined ? (outer[name as keyof typeof outer] ?? expect.fail(name)) : `blk.${layer}.${PARTS[part]}.${leaf}`
}

/** Rows of each head from halves to pairs: row 2i from i, row 2i + 1 from i + n / 2. */
function toPairs(bytes: Uint8Array, rows: number, head: number): Uint8Array {
  const row = bytes.length / rows
  const order = Array.from({ length: rows }, (_, to) => to - (to % head) + ((to % head) % 2) * (head / 2) + Math.floor((to % head) / 2))
  return new Uint8Array(Buffer.concat(order.map((from) => bytes.subarray(from * row, (from + 1) * row))))
}

function convert(model: string, config: LlamaConfig): Uint8Array<ArrayBuffer> {
  const architecture = config.modelType === 'mistral' ? 'llama' : config.modelType
  const file = readFileSync(new URL(`${model}/model.safetensors`, root))
  const length = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, 8 + length)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: number[] }
  >
  const tensors = new Map<string, RawGgufTensor>()
  for (const [old, { dtype, shape, data_offsets: [begin = 0, end = 0] = [] }] of Object.entries(header)) {
    if (old === '__metadata__' || (old === 'lm_head.weight' && config.tieEmbeddings)) continue
    const bytes = new Uint8Array(file.subarray(8 + length + begin, 8 + length + end))
    const name = ggufName(old)
    const turned = architecture === 'llama' && /\.attn_[qk]\./.test(name) ? toPairs(bytes, shape[0] as number, config.headDim) : bytes
    tensors.set(name, { name, dims: shape.toReversed(), type: TYPES[dtype] as number, bytes: turned })
  }
  if (config.ropeScaling) {
    const plain = ropeFrequencies({ ...config, ropeScaling: null })
    const divisors = ropeFrequencies(config).map((frequency, i) => (plain[i] as number) / frequency)
    tensors.set('rope_freqs.weight', floats('rope_freqs.weight', [divisors.length], divisors))
  }
  const keys: Metadata = {
    context_length: [4, config.maxPosition],
    embedding_length: [4, config.hiddenSize],
    block_count: [4, config.layers],
    feed_forward_length: [4, config.intermediateSize],
    'attention.head_count': [4, config.heads],
    'attention.head_count_kv': [4, config.kvHeads],
    'attention.key_length': [4, config.headDim],
    'attention.value_length': [4, config.headDim],
    'attention.layer_norm_rms_epsilon': [6, config.rmsNormEps],
    'rope.freq_base': [6, config.ropeTheta],
    'rope.dimension_count': [4, config.headDim],
    'attention.sliding_window': config.slidingWindow === null ? undefined : [4, config.slidingWindow],
  }
  const metadata = Object.fromEntries(Object.entries(keys).map(([key, value]) => [`${architecture}.${key}`, value]))
  const tokens = Object.fromEntries(Object.entries(LLAMA).filter(([key]) => key.startsWith('tokenizer.')))
  const ids: Metadata = {
    'tokenizer.ggml.bos_token_id': [4, config.bosTokenId],
    'tokenizer.ggml.eos_token_id': [4, config.eosTokenIds[0]],
  }
  return modelFile({ 'general.architecture': [8, architecture], ...metadata, ...tokens, ...ids }, tensors)
}

describe('a folder as a GGUF file is the same model', () => {
  test.each(['llama-gqa', 'llama-rope3-tied', 'llama-bias-headdim', 'qwen2', 'qwen3', 'mistral-window'])('%s', async (model) => {
    const folder = fileFolder(new URL(model, root).pathname)
    const config = await readConfig(folder)
    const gguf = memoryFolder({ 'model.gguf': convert(model, config) })
    const again = await readConfig(gguf)
    const { modelType, ropeScaling, rmsNormEps, dtype, ...same } = config
    expect(again).toMatchObject(same)
    expect(again.rmsNormEps).toBe(Math.fround(rmsNormEps))
    for (const [i, frequency] of ropeFrequencies(again).entries()) {
      expect(frequency / (ropeFrequencies(config)[i] as number)).toBeCloseTo(1, 6)
    }
    const [weights, others] = [await openWeights(folder), await openWeights(gguf)]
    const names = weights.names().filter((name) => !(config.tieEmbeddings && name === 'lm_head.weight'))
    expect(others.names().sort()).toEqual(names.sort())
    for (const name of names) {
      const [{ bytes, ...info }, want] = [await others.read(name), await weights.read(name)]
      expect(info, name).toEqual({ dtype: want.dtype, shape: want.shape })
      expect(Buffer.compare(bytes, want.bytes), name).toBe(0)
    }
    await Promise.all([weights.close(), others.close()])
  })
})
