// config.json: what each fixture says, defaults, both layouts of transformers, and refusals that name the key.
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { type LlamaConfig, parseConfig, parseTokenIds, ropeFrequencies } from '../../runtime/model/config.ts'

const fixture = (model: string): Record<string, unknown> =>
  JSON.parse(readFileSync(new URL(`../fixtures/tiny-models/${model}/config.json`, import.meta.url), 'utf8'))

const base = {
  model_type: 'llama',
  architectures: ['LlamaForCausalLM'],
  hidden_size: 64,
  intermediate_size: 160,
  num_hidden_layers: 2,
  num_attention_heads: 8,
  vocab_size: 320,
  max_position_embeddings: 256,
}

function refusal(json: unknown): string {
  try {
    parseConfig(json)
  } catch (error) {
    expect((error as RankmeshError).code, String((error as Error).stack)).toBe('ERR_MODEL_FORMAT')
    return (error as Error).message
  }
  return expect.fail(`accepted ${JSON.stringify(json)}`)
}

describe('the fixtures', () => {
  const common = {
    layers: 2,
    vocabSize: 320,
    rmsNormEps: 1e-6,
    bosTokenId: 256,
    eosTokenIds: [257],
    ropeScaling: null,
    slidingWindow: null,
  }
  const plain = { qkvBias: false, outBias: false, mlpBias: false, qkNorm: false, tieEmbeddings: false }
  const models: [string, LlamaConfig][] = [
    [
      'llama-gqa',
      {
        ...common,
        ...plain,
        modelType: 'llama',
        hiddenSize: 64,
        intermediateSize: 160,
        heads: 8,
        kvHeads: 4,
        headDim: 8,
        ropeTheta: 1e4,
        maxPosition: 256,
        dtype: 'float32',
      },
    ],
    [
      'llama-bias-headdim',
      {
        ...common,
        qkvBias: true,
        outBias: true,
        mlpBias: true,
        qkNorm: false,
        tieEmbeddings: false,
        modelType: 'llama',
        hiddenSize: 48,
        intermediateSize: 112,
        heads: 4,
        kvHeads: 1,
        headDim: 16,
        ropeTheta: 1e4,
        maxPosition: 256,
        dtype: 'float16',
      },
    ],
    [
      'llama-rope3-tied',
      {
        ...common,
        ...plain,
        tieEmbeddings: true,
        modelType: 'llama',
        hiddenSize: 96,
        intermediateSize: 128,
        heads: 6,
        kvHeads: 2,
        headDim: 16,
        ropeTheta: 5e5,
        ropeScaling: { type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPosition: 64 },
        maxPosition: 512,
        dtype: 'bfloat16',
      },
    ],
    [
      'qwen2',
      {
        ...common,
        ...plain,
        qkvBias: true,
        tieEmbeddings: true,
        modelType: 'qwen2',
        hiddenSize: 64,
        intermediateSize: 144,
        heads: 8,
        kvHeads: 2,
        headDim: 8,
        ropeTheta: 1e6,
        maxPosition: 256,
        dtype: 'bfloat16',
      },
    ],
    [
      'qwen3',
      {
        ...common,
        ...plain,
        qkNorm: true,
        modelType: 'qwen3',
        hiddenSize: 64,
        intermediateSize: 144,
        heads: 6,
        kvHeads: 2,
        headDim: 16,
        ropeTheta: 1e6,
        maxPosition: 256,
        dtype: 'bfloat16',
      },
    ],
    [
      'mistral-window',
      {
        ...common,
        ...plain,
        slidingWindow: 16,
        modelType: 'mistral',
        hiddenSize: 64,
        intermediateSize: 144,
        heads: 8,
        kvHeads: 4,
        headDim: 8,
        ropeTheta: 1e4,
        maxPosition: 256,
        dtype: 'bfloat16',
      },
    ],
  ]
  test.each(models)('%s', (model, config) => {
    expect(parseConfig(fixture(model))).toEqual(config)
  })

  test.each([
    ['mixtral', 'MixtralForCausalLM'],
    ['qwen3_moe', 'Qwen3MoeForCausalLM'],
    ['gemma2', 'Gemma2ForCausalLM'],
    ['toString', 'x'],
  ])('%s is refused with a list of what is read', (model_type, architecture) => {
    const message = refusal({ ...base, model_type, architectures: [architecture] })
    for (const word of [model_type, architecture, 'llama', 'mistral', 'qwen2', 'qwen3']) expect(message).toContain(word)
  })
})

describe('defaults and layouts', () => {
  test('absent and null values', () => {
    const config = parseConfig({ ...base, head_dim: null, num_key_value_heads: null, rope_scaling: null, eos_token_id: null, dtype: null })
    expect(config).toMatchObject({ kvHeads: 8, headDim: 8, rmsNormEps: 1e-6, ropeTheta: 1e4, ropeScaling: null, slidingWindow: null })
    expect(config).toMatchObject({
      tieEmbeddings: false,
      qkvBias: false,
      outBias: false,
      mlpBias: false,
      dtype: null,
      bosTokenId: null,
      eosTokenIds: [],
    })
    const { architectures: _, ...without } = base
    expect(parseConfig(without)).toEqual(config)
  })

  test('the rope settings of transformers 4 and 5 mean the same', () => {
    const values = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 }
    const layouts = [
      { rope_theta: 5e5, rope_scaling: { rope_type: 'llama3', ...values } },
      { rope_theta: 5e5, rope_scaling: { type: 'llama3', ...values } },
      { rope_parameters: { rope_theta: 5e5, rope_type: 'llama3', ...values } },
      { rope_parameters: { rope_theta: 5e5, rope_type: 'llama3', ...values }, rope_theta: 1e4, rope_scaling: null },
      { rope_parameters: { rope_type: 'llama3', ...values }, rope_theta: 5e5 },
    ].map((layout) => parseConfig({ ...base, ...layout }))
    for (const config of layouts) expect(config).toEqual(layouts[0])
    expect(layouts[0]).toMatchObject({ ropeTheta: 5e5, ropeScaling: { type: 'llama3', originalMaxPosition: 8192 } })
    expect(parseConfig({ ...base, rope_scaling: { type: 'linear', factor: 2.5 } }).ropeScaling).toEqual({ type: 'linear', factor: 2.5 })
    expect(parseConfig({ ...base, rope_scaling: { rope_type: 'default' } }).ropeScaling).toBeNull()
  })

  test('both names of the dtype', () => {
    const dtypes = [
      { dtype: 'float16' },
      { torch_dtype: 'float16' },
      { torch_dtype: 'torch.float16' },
      { dtype: 'float16', torch_dtype: 'float32' },
    ]
    expect(dtypes.map((over) => parseConfig({ ...base, ...over }).dtype)).toEqual(Array(4).fill('float16'))
  })

  test('end tokens: one, several, none', () => {
    const ids = [7, [7], [7, 9, 7], [], null].map((eos_token_id) => parseConfig({ ...base, eos_token_id }).eosTokenIds)
    expect(ids).toEqual([[7], [7], [7, 9], [], []])
    expect(parseTokenIds('eos_token_id', [1, 2], 3)).toEqual([1, 2])
  })

  test('qwen3: heads of 128 unless it says otherwise, biases where it says so', () => {
    const qwen3 = { ...base, model_type: 'qwen3', architectures: ['Qwen3ForCausalLM'], hidden_size: 60 }
    expect(parseConfig(qwen3)).toMatchObject({ headDim: 128, qkvBias: false, outBias: false, qkNorm: true })
    expect(parseConfig({ ...qwen3, attention_bias: true })).toMatchObject({ qkvBias: true, outBias: true, mlpBias: false })
  })

  const mistral = { ...base, model_type: 'mistral', architectures: ['MistralForCausalLM'] }
  const qwen2 = { ...base, model_type: 'qwen2', architectures: ['Qwen2ForCausalLM'], sliding_window: 32 }
  test('sliding windows', () => {
    expect(parseConfig({ ...mistral, sliding_window: null }).slidingWindow).toBeNull()
    expect(parseConfig(mistral).slidingWindow).toBe(4096)
    expect(parseConfig({ ...base, sliding_window: 32 }).slidingWindow).toBeNull()
    expect(parseConfig(qwen2).slidingWindow).toBeNull()
    expect(parseConfig({ ...qwen2, use_sliding_window: true, max_window_layers: 0 }).slidingWindow).toBe(32)
    expect(parseConfig({ ...qwen2, use_sliding_window: true, max_window_layers: 2 }).slidingWindow).toBeNull()
    expect(parseConfig({ ...qwen2, use_sliding_window: true, layer_types: Array(2).fill('sliding_attention') }).slidingWindow).toBe(32)
    expect(refusal({ ...qwen2, use_sliding_window: true, max_window_layers: 1 })).toMatch(/layer_types.*full_attention.*sliding_attention/)
    expect(refusal({ ...qwen2, use_sliding_window: true, layer_types: ['sliding_attention'] })).toMatch(/layer_types/)
  })
})

describe('refusals name the key and the value', () => {
  const big = 2 ** 53
  test.each<[string, unknown]>([
    ...['hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'vocab_size', 'max_position_embeddings'].flatMap(
      (key): [string, unknown][] =>
        [undefined, null, 0, -1, 1.5, '64', [64], Number.NaN, Number.POSITIVE_INFINITY, big].map((value) => [key, value]),
    ),
    ['num_key_value_heads', 3],
    ['num_key_value_heads', 0],
    ['num_key_value_heads', 16],
    ['head_dim', 7],
    ['head_dim', 0],
    ['head_dim', '8'],
    ['hidden_size', 60],
    ['rms_norm_eps', 0],
    ['rms_norm_eps', '1e-6'],
    ['rms_norm_eps', Number.NaN],
    ['rope_theta', 0],
    ['rope_theta', Number.POSITIVE_INFINITY],
    ['rope_theta', '10000'],
    ['tie_word_embeddings', 1],
    ['attention_bias', 'true'],
    ['mlp_bias', 0],
    ['hidden_act', 'gelu'],
    ['dtype', 'float64'],
    ['dtype', 'int8'],
    ['eos_token_id', 320],
    ['eos_token_id', -1],
    ['eos_token_id', [1, '2']],
    ['bos_token_id', 1.5],
    ['architectures', ['LlamaForSequenceClassification']],
    ['architectures', 'LlamaForCausalLM'],
    ['partial_rotary_factor', 0.5],
    ['quantization_config', { quant_method: 'gptq' }],
    ['rope_scaling', 'llama3'],
    ['rope_parameters', { full_attention: { rope_theta: 1e4, rope_type: 'default' } }],
    ['rope_parameters', { rope_type: 'default', rope_theta: 1e4, partial_rotary_factor: 0.25 }],
  ])('%s: %j', (key, value) => {
    expect(refusal({ ...base, [key]: value })).toContain(
      key === 'rope_parameters' && JSON.stringify(value).includes('partial') ? 'partial' : key,
    )
  })

  test.each(['yarn', 'dynamic', 'longrope', 'su', 3])('rope scaling of type %j', (rope_type) => {
    expect(refusal({ ...base, rope_scaling: { rope_type, factor: 2 } })).toContain(JSON.stringify(rope_type))
  })

  const llama3 = { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 }
  test.each([
    ['factor', undefined],
    ['factor', 0.5],
    ['low_freq_factor', 0],
    ['high_freq_factor', 1],
    ['original_max_position_embeddings', null],
    ['original_max_position_embeddings', 0.5],
  ])('llama3 with %s %j', (key, value) => {
    expect(refusal({ ...base, rope_scaling: { ...llama3, [key]: value } })).toContain(key)
  })

  test.each([null, [], 'x', 1, undefined])('%j instead of an object', (json) => {
    expect(refusal(json)).toContain('config.json')
  })

  test('values inherited from Object.prototype are not there', () => {
    expect(refusal(Object.create(base))).toContain('model_type')
  })
})

const LLAMA31: [number, number][] = [
  [1, 0.8146172338565447],
  [28, 0.0032114459947525913],
  [29, 0.002166570763503359],
  [30, 0.0013718935677611381],
  [31, 0.0008567514129196321],
  [32, 0.0005248461609929547],
  [33, 0.00031269375038406517],
  [34, 0.00017850781276799638],
  [35, 9.556212353964683e-5],
  [36, 7.78465527393245e-5],
  [63, 3.068925988914511e-7],
]

describe('rope frequencies', () => {
  test('fall geometrically from 1', () => {
    const plain = ropeFrequencies({ headDim: 8, ropeTheta: 1e4, ropeScaling: null })
    expect(plain.length).toBe(4)
    for (const [i, want] of [1, 0.1, 0.01, 0.001].entries()) expect(plain[i]).toBeCloseTo(want, 15)
  })

  test('linear scaling divides them', () => {
    expect([...ropeFrequencies({ headDim: 4, ropeTheta: 100, ropeScaling: { type: 'linear', factor: 4 } })]).toEqual([0.25, 0.025])
  })

  test('divisors divide each by its own', () => {
    const ropeScaling = { type: 'divisors', divisors: [1, 4] } as const
    expect([...ropeFrequencies({ headDim: 4, ropeTheta: 100, ropeScaling })]).toEqual([1, 0.025])
  })

  // Llama 3.1 8B: head size 128, base 500,000, factor 8, 1 and 4 turns within 8,192 positions; values computed apart from this code.
  test('of Llama 3.1: short waves stay, long ones stretch by the factor, those between blend', () => {
    const scaling = { type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPosition: 8192 } as const
    const plain = ropeFrequencies({ headDim: 128, ropeTheta: 5e5, ropeScaling: null })
    const scaled = ropeFrequencies({ headDim: 128, ropeTheta: 5e5, ropeScaling: scaling })
    for (const i of [0, 10, 28]) expect(scaled[i]).toBe(plain[i])
    for (const i of [35, 50, 63]) expect(scaled[i]).toBe(plain[i]! / 8)
    for (const [i, want] of LLAMA31) expect(Math.abs(scaled[i]! / want - 1)).toBeLessThan(1e-13)
  })
})
