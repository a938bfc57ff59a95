// Weights of GGUF files: every slice is that of the whole tensor, in blocks or decoded, in Hugging Face's order; a rank reads its part and little more.
import { describe, expect, test } from 'vitest'
import { BLOCK_FORMATS, type BlockType, decodeBlocks } from '../../runtime/core/blocks.ts'
import { decode, dtypeSize, isBlockDType } from '../../runtime/core/dtype.ts'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { floats, type RawGgufTensor } from '../support/gguf-files.ts'
import { LLAMA, metadataOf, modelFile, tensorsOf } from '../support/gguf-models.ts'
import { memoryFolder } from '../support/model-files.ts'
import { Random, seed } from '../support/random.ts'

const NUMBERS: Record<BlockType, number> = { F32: 0, F16: 1, Q4_0: 2, Q4_1: 3, Q8_0: 8, Q4_K: 12, Q5_K: 13, Q6_K: 14, BF16: 30 }

/** Random blocks; the exponents of float16 are kept small, so that no scale is infinite or NaN. */
function blocks(random: Random, name: string, type: BlockType, columns: number, rows: number): RawGgufTensor {
  const { values, bytes: size } = BLOCK_FORMATS[type]
  const bytes = Uint8Array.from({ length: ((columns * rows) / values) * size }, () => random.int(256) & 0x3f)
  return { name, dims: [columns, rows], type: NUMBERS[type], bytes }
}

/** A whole tensor as anyone would read it: element by element, rows of heads of 16 put from pairs into halves. */
function wholeOf({ name, dims, type, bytes }: RawGgufTensor, paired: boolean): Float32Array {
  const named = Object.entries(NUMBERS).find(([, number]) => number === type)?.[0] as BlockType
  const values = decodeBlocks(named, bytes)
  if (!paired || !/attn_[qk]\./.test(name)) return values
  const [columns, rows] = dims.length === 1 ? [1, dims[0] as number] : (dims as [number, number])
  const out = new Float32Array(values.length)
  for (let row = 0; row < rows; row++) {
    const [head, i] = [Math.floor(row / 16), row % 16]
    const from = head * 16 + (i < 8 ? 2 * i : 2 * (i - 8) + 1)
    for (let column = 0; column < columns; column++) out[row * columns + column] = values[from * columns + column] as number
  }
  return out
}

const shapes = {
  'llama.embedding_length': [4, 512],
  'llama.attention.key_length': [4, 16],
  'llama.attention.value_length': [4, 16],
} as const

describe('slices', () => {
  test('equal those of the whole tensor, for every type, cut and gap', async () => {
    const at = seed()
    const random = new Random(at)
    for (let round = 0; round < 120; round++) {
      const architecture = random.int(2) ? 'llama' : 'qwen2'
      const type = Object.keys(BLOCK_FORMATS)[random.int(9)] as BlockType
      const part = ['attn_q', 'attn_k', 'attn_v', 'ffn_up'][random.int(4)] as string
      const name = `blk.${random.int(2)}.${part}.weight`
      const [columns, rows] = [512, 16 * (1 + random.int(4))]
      const tensor = blocks(random, name, type, columns, rows)
      const bias = floats('blk.0.attn_q.bias', [rows], random.floats(rows))
      const others = Object.fromEntries(
        ['0.attn_k', '0.attn_v', '1.attn_q', '1.attn_k', '1.attn_v'].map((place) => [
          `blk.${place}.bias`,
          floats(`blk.${place}.bias`, [1], [0]),
        ]),
      )
      const metadata = metadataOf(
        architecture,
        Object.fromEntries(Object.entries(shapes).map(([key, value]) => [key.replace('llama', architecture), [...value]])),
      )
      const file = modelFile(metadata, tensorsOf(random, { [name]: tensor, [bias.name]: bias, ...others }))
      const weights = await openWeights(memoryFolder({ 'model.gguf': file }), {
        mergeGap: random.int(400),
        quantizedAs: random.int(2) ? 'blocks' : 'float32',
      })
      const to = (old: string) =>
        old
          .replace('blk.', 'model.layers.')
          .replace(/attn_([qkv])/, 'self_attn.$1_proj')
          .replace('ffn_up', 'mlp.up_proj')
      for (const given of [tensor, bias]) {
        const whole = wholeOf(given, architecture === 'llama')
        const [width, height] = given.dims.length === 1 ? [1, rows] : [columns, rows]
        const dim = given.dims.length === 1 ? 0 : random.int(2)
        const size = dim === 0 ? height : width
        const { values: block } = BLOCK_FORMATS[given === tensor ? type : 'F32']
        const step = dim === 1 && random.int(2) ? block : 1
        const start = step * random.int(size / step + 1)
        const length = step * random.int((size - start) / step + 1)
        const { dtype: stored } = await weights.info(to(given.name))
        const got = await weights.readSlice(to(given.name), dim, start, length)
        const want = whole.filter((_, i) => {
          const place = dim === 0 ? Math.floor(i / width) : i % width
          return place >= start && place < start + length
        })
        const label = `seed ${at}, round ${round}: ${given.name} ${type} of ${architecture}, dim ${dim}, ${start} + ${length}`
        expect(got.shape, label).toEqual(given.dims.length === 1 ? [length] : dim === 0 ? [length, width] : [height, length])
        const inside = dim === 1 && (start % block !== 0 || length % block !== 0)
        expect(got.dtype, label).toBe(isBlockDType(stored) && inside ? 'float32' : stored)
        const values = decode(got.dtype, got.bytes) as Float32Array<ArrayBuffer>
        expect(Buffer.compare(new Uint8Array(values.buffer), new Uint8Array(want.buffer)), label).toBe(0)
        expect((await weights.read(to(given.name))).bytes.length, label).toBe(whole.length * dtypeSize(stored))
      }
      await weights.close()
    }
  })

  test('of a rank read its blocks and no others', async () => {
    const random = new Random(seed())
    const down = blocks(random, 'blk.0.ffn_down.weight', 'Q8_0', 1024, 64)
    const gate = blocks(random, 'blk.0.ffn_gate.weight', 'Q4_K', 256, 1024)
    const file = modelFile(LLAMA, tensorsOf(random, { [down.name]: down, [gate.name]: gate }))
    const weights = await openWeights(memoryFolder({ 'model.gguf': file }), { mergeGap: 0 })
    await weights.readSlice('model.layers.0.mlp.gate_proj.weight', 0, 512, 512)
    expect(weights.bytesRead).toBe(512 * 144)
    await weights.readSlice('model.layers.0.mlp.down_proj.weight', 1, 256, 256)
    expect(weights.bytesRead).toBe(512 * 144 + 64 * 8 * 34)
    // A cut inside of a block reads the whole block.
    await weights.readSlice('model.layers.0.mlp.down_proj.weight', 1, 31, 2)
    expect(weights.bytesRead).toBe(512 * 144 + 64 * 10 * 34)
  })
})

describe('types', () => {
  test('floats and blocks stay as they are stored; blocks become float32 or bfloat16 where that is asked for', async () => {
    const random = new Random(seed())
    const half = blocks(random, 'blk.0.attn_v.weight', 'F16', 64, 32)
    const gate = blocks(random, 'blk.0.ffn_gate.weight', 'Q4_0', 64, 96)
    const folder = memoryFolder({ 'model.gguf': modelFile(LLAMA, tensorsOf(random, { [half.name]: half, [gate.name]: gate })) })
    const kept = await openWeights(folder)
    const weights = await openWeights(folder, { quantizedAs: 'float32' })
    const rounded = await openWeights(folder, { quantizedAs: 'bfloat16' })
    const [v, gateName] = ['model.layers.0.self_attn.v_proj.weight', 'model.layers.0.mlp.gate_proj.weight']
    expect(await weights.read(v)).toMatchObject({ dtype: 'float16', shape: [32, 64], bytes: half.bytes })
    expect(await weights.info(gateName)).toMatchObject({ dtype: 'float32', blocks: 'Q4_0', shape: [96, 64] })
    expect((await weights.info(v)).blocks).toBeUndefined()
    expect(await kept.info(gateName)).toMatchObject({ dtype: 'q4_0', blocks: 'Q4_0', shape: [96, 64] })
    expect(await kept.read(gateName)).toMatchObject({ dtype: 'q4_0', shape: [96, 64], bytes: gate.bytes })
    const exact = decode('float32', (await weights.read(gateName)).bytes) as Float32Array
    const near = await rounded.read(gateName, { dtype: 'bfloat16', shape: [96, 64] })
    const values = decode('bfloat16', near.bytes) as Float32Array
    expect(values.every((value, i) => Math.abs(value - (exact[i] as number)) <= Math.abs(exact[i] as number) / 256)).toBe(true)
    expect(values).not.toEqual(exact)
    await expect(openWeights(folder, { quantizedAs: 'int8' as 'bfloat16' })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  })

  test('a vector in blocks becomes float32: no device adds blocks', async () => {
    const random = new Random(seed())
    const norm = blocks(random, 'blk.0.attn_norm.weight', 'Q8_0', 64, 1)
    const tensors = tensorsOf(random, { [norm.name]: { ...norm, dims: [64] } })
    const weights = await openWeights(memoryFolder({ 'model.gguf': modelFile(LLAMA, tensors) }))
    const { dtype, bytes } = await weights.read('model.layers.0.input_layernorm.weight')
    expect(dtype).toBe('float32')
    expect(decode(dtype, bytes)).toEqual(decodeBlocks('Q8_0', norm.bytes))
  })

  test('the header is read once for a folder, and every file is closed', async () => {
    const folder = memoryFolder({ 'model.gguf': modelFile(LLAMA, tensorsOf(new Random(seed()))) })
    const opened = await Promise.all([openWeights(folder), openWeights(folder)])
    expect(folder.reads).toHaveLength(1)
    for (const weights of opened) await weights.close()
    expect(folder.openNow).toBe(0)
  })

  test('names that are not there, slices outside, other shapes', async () => {
    const weights = await openWeights(memoryFolder({ 'model.gguf': modelFile(LLAMA, tensorsOf(new Random(seed()))) }))
    const error = (work: Promise<unknown>) =>
      work.then(
        () => expect.fail('nothing was refused'),
        (e: RankmeshError) => `${e.code} ${e.message}`,
      )
    expect(await error(weights.read('model.norm'))).toMatch(/ERR_MODEL_FORMAT.*"model.norm"; the nearest names are: "model.norm.weight"/)
    expect(await error(weights.read('model.norm.weight', { shape: [3] }))).toMatch(/ERR_MODEL_FORMAT.*\[3\].*\[64\]/)
    expect(await error(weights.readSlice('model.norm.weight', 0, 60, 5))).toMatch(/ERR_ARGUMENT/)
    expect(weights.names()).toContain('lm_head.weight')
    expect(weights.has('output.weight')).toBe(false)
  })
})
