// The shape of a model from GGUF metadata: what each key becomes, and refusals that name the key or the tensor.
import { describe, expect, test } from 'vitest'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { ropeFrequencies } from '../../runtime/model/config.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { floats, type RawGgufTensor } from '../support/gguf-files.ts'
import { LLAMA, type Metadata, metadataOf, modelFile, tensorsOf } from '../support/gguf-models.ts'
import { memoryFolder } from '../support/model-files.ts'
import { Random, seed } from '../support/random.ts'

const random = new Random(seed())
type Tensors = Record<string, RawGgufTensor | null>
const config = (metadata: Metadata, tensors: Tensors = {}) =>
  readConfig(memoryFolder({ 'model.gguf': modelFile(metadata, tensorsOf(random, tensors)) }))

async function refusal(metadata: Metadata, tensors: Tensors = {}): Promise<string> {
  return config(metadata, tensors).then(
    () => expect.fail('nothing was refused'),
    (error: RankmeshError) => {
      expect(error.code, String(error.stack)).toBe('ERR_MODEL_FORMAT')
      return error.message
    },
  )
}

const one = (name: string, size = 1): RawGgufTensor => floats(name, [size], new Float32Array(size).fill(1))
const all = (...names: string[]): Tensors =>
  Object.fromEntries(names.flatMap((name) => [0, 1].map((layer) => [`blk.${layer}.${name}`, one(`blk.${layer}.${name}`)])))

describe('a llama', () => {
  const plain = {
    modelType: 'llama',
    hiddenSize: 64,
    intermediateSize: 96,
    layers: 2,
    heads: 4,
    kvHeads: 2,
    headDim: 16,
    vocabSize: 8,
    ropeTheta: 5e5,
    ropeScaling: null,
    maxPosition: 512,
    tieEmbeddings: false,
    qkvBias: false,
    outBias: false,
    mlpBias: false,
    qkNorm: false,
    slidingWindow: null,
    bosTokenId: 3,
    eosTokenIds: [4],
  }

  test('has the shape that its keys say', async () => {
    const read = await config(LLAMA)
    expect(read).toMatchObject(plain)
    expect(read.rmsNormEps).toBeCloseTo(1e-5, 10)
    expect(await config({ ...LLAMA, 'llama.attention.head_count_kv': [9, [5, [2, 2]]] })).toEqual(read)
    expect(await config({ ...LLAMA, 'llama.rope.scaling.type': [8, 'none'], 'llama.expert_count': [4, 0] })).toEqual(read)
  })

  test('takes biases, a tied head and the vocabulary from its tensors', async () => {
    const tensors = { ...all('attn_q.bias', 'attn_k.bias', 'attn_v.bias'), 'output.weight': null }
    expect(await config(LLAMA, tensors)).toEqual({ ...(await config(LLAMA)), qkvBias: true, tieEmbeddings: true })
    expect(await config(LLAMA, all('attn_output.bias'))).toMatchObject({ qkvBias: false, outBias: true })
    expect(await config(LLAMA, all('ffn_up.bias', 'ffn_gate.bias', 'ffn_down.bias'))).toMatchObject({ mlpBias: true })
  })

  test('may have a window, other head sizes, several end tokens, linear scaling', async () => {
    const over = {
      'llama.attention.sliding_window': [4, 32],
      'llama.attention.key_length': [4, 32],
      'llama.attention.value_length': [4, 32],
      'tokenizer.ggml.eot_token_id': [4, 2],
      'llama.rope.scaling.type': [8, 'linear'],
      'llama.rope.scaling.factor': [6, 4],
    } satisfies Metadata
    const scaled = { slidingWindow: 32, headDim: 32, eosTokenIds: [4, 2], ropeScaling: { type: 'linear', factor: 4 } }
    expect(await config({ ...LLAMA, ...over })).toMatchObject(scaled)
  })

  test('of version 3.1 has its frequencies divided by a tensor', async () => {
    const divisors = [1, 1, 1, 2, 4, 8, 8, 8]
    const read = await config(LLAMA, { 'rope_freqs.weight': floats('rope_freqs.weight', [8], divisors) })
    const frequencies = ropeFrequencies({ headDim: 16, ropeTheta: 5e5, ropeScaling: null })
    expect([...ropeFrequencies(read)]).toEqual([...frequencies].map((frequency, i) => frequency / (divisors[i] as number)))
  })
})

test('qwen2 and qwen3 are read', async () => {
  const qwen2 = await config(metadataOf('qwen2'), all('attn_q.bias', 'attn_k.bias', 'attn_v.bias'))
  expect(qwen2).toMatchObject({ modelType: 'qwen2', qkvBias: true, qkNorm: false, headDim: 16 })
  const qwen3 = await config(metadataOf('qwen3'), all('attn_q_norm.weight', 'attn_k_norm.weight'))
  expect(qwen3).toMatchObject({ modelType: 'qwen3', qkvBias: false, qkNorm: true })
})

test('a file of llama.cpp', async () => {
  const folder = fileFolder(new URL('../fixtures/tiny-gguf/q4_0.gguf', import.meta.url).pathname)
  expect(await readConfig(folder)).toMatchObject({ hiddenSize: 256, heads: 4, kvHeads: 2, headDim: 64, vocabSize: 512, eosTokenIds: [257] })
})

describe('refused', () => {
  const cases: [string, Metadata, RegExp][] = [
    ['other architectures', metadataOf('qwen3moe'), /"qwen3moe" are not read.*llama, qwen2, qwen3/],
    ['an architecture that is a number', { ...LLAMA, 'general.architecture': [4, 7] }, /7 \(number\)/],
    ['none', { ...LLAMA, 'general.architecture': undefined }, /undefined are not read/],
    ['experts', { ...LLAMA, 'llama.expert_count': [4, 8] }, /experts are not read.*8/],
    ['one part of several', { ...LLAMA, 'split.count': [2, 3] }, /one of 3 \(number\) parts/],
    ['soft caps', { ...LLAMA, 'llama.attn_logit_softcapping': [6, 50] }, /attn_logit_softcapping = 50/],
    ['attention both ways', { ...LLAMA, 'llama.attention.causal': [7, false] }, /attention.causal = false/],
    ['layers that differ', { ...LLAMA, 'llama.attention.head_count_kv': [9, [5, [2, 4]]] }, /same for all layers.*head_count_kv/],
    ['an empty list', { ...LLAMA, 'llama.block_count': [9, [5, []]] }, /block_count/],
    ['no size', { ...LLAMA, 'llama.embedding_length': undefined }, /hidden_size/],
    ['a size of text', { ...LLAMA, 'llama.embedding_length': [8, '64'] }, /hidden_size.*"64"/],
    ['a size beyond all bounds', { ...LLAMA, 'llama.feed_forward_length': [10, 2 ** 60] }, /intermediate_size/],
    ['partial rotation', { ...LLAMA, 'llama.rope.dimension_count': [4, 8] }, /rope.dimension_count.*received 8/],
    ['values of another size', { ...LLAMA, 'llama.attention.value_length': [4, 8] }, /attention.value_length/],
    ['scaling that is not read', { ...LLAMA, 'llama.rope.scaling.type': [8, 'yarn'] }, /"yarn"/],
    ['a window of half a position', { ...LLAMA, 'llama.attention.sliding_window': [6, 0.5] }, /sliding_window/],
    ['an end token outside the vocabulary', { ...LLAMA, 'tokenizer.ggml.eos_token_id': [4, 8] }, /eos_token_id/],
  ]
  test.each(cases)('%s', async (_, metadata, message) => {
    expect(await refusal(metadata)).toMatch(message)
  })

  const tensors: [string, Tensors, RegExp][] = [
    ['a tensor that has no use', { x: one('blk.0.ffn_gate_exps.weight') }, /"blk.0.ffn_gate_exps.weight", which models/],
    ['a layer too many', { x: one('blk.2.attn_norm.weight') }, /"blk.2.attn_norm.weight"/],
    ['norms of heads where there are none', { x: one('blk.0.attn_q_norm.weight') }, /"blk.0.attn_q_norm.weight"/],
    ['a bias of a norm', { x: one('blk.0.attn_norm.bias') }, /"blk.0.attn_norm.bias"/],
    ['__proto__', { x: one('blk.0.__proto__.weight') }, /__proto__/],
    ['biases of some layers', { x: one('blk.0.attn_output.bias') }, /biases for some/],
    ['too few divisors', { x: one('rope_freqs.weight', 7) }, /8 positive numbers.*rope_freqs/],
    ['divisors of zero', { x: floats('rope_freqs.weight', [8], new Float32Array(8)) }, /8 positive numbers/],
    ['no embedding', { 'token_embd.weight': null }, /vocab_size/],
  ]
  test.each(tensors)('%s', async (_, over, message) => {
    expect(await refusal(LLAMA, over)).toMatch(message)
  })
})
