// Weights of a folder: one file or shards, slices that equal plain slicing, and no more bytes read than a rank's part.
import { afterAll, describe, expect, test } from 'vitest'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import type { ModelFolder } from '../../runtime/model/source.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { type Files, memoryFolder, safetensorsOf } from '../support/model-files.ts'
import { Random, seed } from '../support/random.ts'

const INDEX = 'model.safetensors.index.json'
const u8 = (...shape: number[]) => ({
  dtype: 'U8',
  shape,
  bytes: Uint8Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => i),
})

async function refusal(work: Promise<unknown>): Promise<RankmeshError> {
  return work.then(
    () => expect.fail('nothing was refused'),
    (e: RankmeshError) => e,
  )
}

/** Slicing as anyone would write it: element by element, on a whole tensor. */
function slice(bytes: Uint8Array, item: number, shape: readonly number[], dim: number, start: number, length: number): Uint8Array {
  const count = shape.reduce((a, b) => a * b, 1)
  const inner = shape.slice(dim + 1).reduce((a, b) => a * b, 1)
  const out = new Uint8Array(count === 0 ? 0 : (bytes.length / shape[dim]!) * length)
  let filled = 0
  for (let i = 0; i < count; i++) {
    const at = Math.floor(i / inner) % shape[dim]!
    if (at < start || at >= start + length) continue
    for (let byte = 0; byte < item; byte++) out[filled++] = bytes[i * item + byte]!
  }
  return out
}

describe('slices', () => {
  test('equal plain slicing for random shapes, types and gaps', async () => {
    const at = seed()
    const random = new Random(at)
    for (let round = 0; round < 300; round++) {
      const [dtype, item] = (
        [
          ['U8', 1],
          ['BF16', 2],
          ['F32', 4],
          ['I64', 8],
        ] as const
      )[random.int(4)]!
      const shape = Array.from({ length: 1 + random.int(3) }, () => random.int(12))
      const bytes = Uint8Array.from({ length: item * shape.reduce((a, b) => a * b, 1) }, () => random.int(256))
      const before = { dtype: 'U8', shape: [3], bytes: Uint8Array.of(1, 2, 3) }
      const folder = memoryFolder({ 'model.safetensors': safetensorsOf({ before, t: { dtype, shape, bytes }, after: before }) })
      const weights = await openWeights(folder, { mergeGap: random.int(40) })
      const dim = random.int(shape.length)
      const start = random.int(shape[dim]! + 1)
      const length = random.int(shape[dim]! - start + 1)
      const got = await weights.readSlice('t', dim - (random.int(2) ? shape.length : 0), start, length)
      const label = `seed ${at}, round ${round}: [${shape}] of ${dtype}, dim ${dim}, ${start} + ${length}`
      expect(got.shape, label).toEqual(shape.with(dim, length))
      expect(got.bytes, label).toEqual(slice(bytes, item, shape, dim, start, length))
    }
  })

  test('of a matrix larger than one band equal plain slicing, joined or not', async () => {
    const shape = [3000, 2000]
    const bytes = Uint8Array.from({ length: 6e6 }, (_, i) => (i * 2654435761) >>> 13)
    const files = { 'model.safetensors': safetensorsOf({ t: { dtype: 'U8', shape, bytes } }) }
    const want = new Uint8Array(3000 * 700)
    for (let row = 0; row < 3000; row++) want.set(bytes.subarray(row * 2000 + 900, row * 2000 + 1600), row * 700)
    for (const [gap, reads, atMost] of [
      [1300, 2, 6e6],
      [1299, 3000, want.length],
    ] as const) {
      const folder = memoryFolder(files, gap)
      const weights = await openWeights(folder)
      folder.reads.length = 0
      const got = await weights.readSlice('t', 1, 900, 700)
      expect(Buffer.compare(got.bytes, want)).toBe(0)
      expect(folder.reads.length).toBe(reads)
      expect(weights.bytesRead).toBeLessThanOrEqual(atMost)
      expect(Math.max(...folder.reads.map((read) => read.length))).toBeLessThanOrEqual(4 << 20)
    }
  })

  test('outside of the tensor are refused', async () => {
    const weights = await openWeights(memoryFolder({ 'model.safetensors': safetensorsOf({ t: u8(4, 6), scalar: u8() }) }))
    expect(await refusal(weights.readSlice('t', 0, 3, 2))).toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining('"t" [4, 6]'),
    })
    for (const [start, length] of [
      [-1, 1],
      [0, -1],
      [0.5, 1],
      [0, Number.NaN],
      [5, 0],
    ] as const) {
      expect((await refusal(weights.readSlice('t', 0, start, length))).code).toBe('ERR_ARGUMENT')
    }
    expect((await refusal(weights.readSlice('t', 2, 0, 1))).code).toBe('ERR_SHAPE')
    expect((await refusal(weights.readSlice('scalar', 0, 0, 1))).code).toBe('ERR_SHAPE')
  })
})

describe('bytes read', () => {
  const world = 4
  const rows = { dtype: 'F32', shape: [1024, 2048], bytes: new Uint8Array(1024 * 2048 * 4) }
  const columns = { dtype: 'F32', shape: [512, 8192], bytes: new Uint8Array(512 * 8192 * 4) }
  const total = rows.bytes.length + columns.bytes.length

  test('by a rank are its part and nothing else, for rows and for wide columns', async () => {
    const folder = memoryFolder({ 'model.safetensors': safetensorsOf({ rows, columns }) })
    for (let rank = 0; rank < world; rank++) {
      const weights = await openWeights(folder)
      await weights.readSlice('rows', 0, rank * 256, 256)
      expect(weights.bytesRead).toBe(rows.bytes.length / world)
      await weights.readSlice('columns', 1, rank * 2048, 2048)
      expect(weights.bytesRead).toBe(total / world)
    }
    const asked = folder.reads.filter((read) => read.offset > 8).reduce((sum, read) => sum + read.length, 0)
    expect(asked).toBeLessThan(total + world * 1000)
  })

  test('are none until a tensor is read, and none for its description', async () => {
    const weights = await openWeights(memoryFolder({ 'model.safetensors': safetensorsOf({ rows }) }))
    expect(await weights.info('rows')).toMatchObject({ name: 'rows', dtype: 'float32', shape: [1024, 2048] })
    expect(weights.bytesRead).toBe(0)
    await weights.readSlice('rows', 0, 5, 0)
    expect(weights.bytesRead).toBe(0)
  })
})

describe('tensors by name', () => {
  const folder = () => memoryFolder({ 'model.safetensors': safetensorsOf({ 'a.0.weight': u8(2), 'a.1.weight': u8(3), 'b.bias': u8(1) }) })

  test('are listed', async () => {
    const weights = await openWeights(folder())
    expect(weights.names()).toEqual(['a.0.weight', 'a.1.weight', 'b.bias'])
    expect([weights.has('b.bias'), weights.has('c'), weights.has('toString')]).toEqual([true, false, false])
  })

  test('that are missing are refused with the nearest names', async () => {
    const error = await refusal((await openWeights(folder())).read('a.2.weight'))
    expect(error.code).toBe('ERR_MODEL_FORMAT')
    expect(error.message).toMatch(/no tensor "a\.2\.weight".*: "a\.0\.weight", "a\.1\.weight", "b\.bias"/)
  })

  test('of another type or shape than expected are refused', async () => {
    const weights = await openWeights(folder())
    expect(await weights.read('b.bias', { dtype: ['float32', 'uint8'], shape: [1] })).toMatchObject({ dtype: 'uint8' })
    const dtype = await refusal(weights.read('b.bias', { dtype: ['float32', 'float16'] }))
    expect([dtype.code, dtype.message]).toEqual(['ERR_MODEL_FORMAT', expect.stringMatching(/float32 or float16 .*"b\.bias".* uint8/)])
    const shape = await refusal(weights.readSlice('b.bias', 0, 0, 1, { shape: [2, 1] }))
    expect([shape.code, shape.message]).toEqual(['ERR_MODEL_FORMAT', expect.stringMatching(/\[2, 1\] .*"b\.bias".* \[1\]/)])
  })
})

describe('shards', () => {
  const shards: Files = { 's1.safetensors': safetensorsOf({ a: u8(2), b: u8(3) }), 's2.safetensors': safetensorsOf({ c: u8(4) }) }
  const withIndex = (map: unknown): Files => ({ ...shards, [INDEX]: JSON.stringify({ metadata: { total_size: 9 }, weight_map: map }) })
  const good = { a: 's1.safetensors', b: 's1.safetensors', c: 's2.safetensors' }

  test('are opened when a tensor of theirs is asked for, once, and closed at the end', async () => {
    const folder = memoryFolder(withIndex(good))
    const weights = await openWeights(folder)
    folder.opened.length = 0
    expect(weights.names()).toEqual(['a', 'b', 'c'])
    await Promise.all([weights.read('a'), weights.read('b')])
    expect(folder.opened).toEqual(['s1.safetensors'])
    expect((await weights.read('c')).bytes).toEqual(Uint8Array.of(0, 1, 2, 3))
    expect(folder.openNow).toBe(2)
    await weights.close()
    expect(folder.openNow).toBe(0)
  })

  test.each<[string, unknown, RegExp]>([
    ['no map', undefined, /weight_map/],
    ['a map that is a list', [], /weight_map/],
    ['a shard that is no text', { a: 1 }, /"a"/],
    ['an absent shard', { a: 's3.safetensors' }, /"s3\.safetensors"/],
    ['a shard above the folder', { a: '../s1.safetensors' }, /"\.\.\/s1\.safetensors"/],
    ['the folder above', { a: '..' }, /"\.\."/],
    ['an absolute path', { a: '/etc/passwd' }, /"\/etc\/passwd"/],
    ['a Windows path', { a: 'C:\\s1.safetensors' }, /C:/],
    ['a name that a C program cuts', { a: 's1.safetensors\0.txt' }, /s1/],
    ['an empty name', { a: '' }, /""/],
  ])('%s in the index is refused', async (_, map, message) => {
    const error = await refusal(openWeights(memoryFolder(withIndex(map))))
    expect([error.code, error.message]).toEqual(['ERR_MODEL_FORMAT', expect.stringMatching(message)])
  })

  test('an index with a name twice or with __proto__ is refused', async () => {
    for (const map of ['{"a":"s1.safetensors","a":"s2.safetensors"}', '{"__proto__":"s1.safetensors"}']) {
      const error = await refusal(openWeights(memoryFolder({ ...shards, [INDEX]: `{"weight_map":${map}}` })))
      expect([error.code, error.message]).toEqual(['ERR_MODEL_FORMAT', expect.stringMatching(/"a" twice|__proto__/)])
    }
  })

  test('a tensor that its shard does not hold is refused, and the shard closed', async () => {
    const folder = memoryFolder(withIndex({ a: 's1.safetensors', d: 's2.safetensors' }))
    const weights = await openWeights(folder)
    await weights.read('a')
    const error = await refusal(weights.read('d'))
    expect([error.code, error.message]).toEqual(['ERR_MODEL_FORMAT', expect.stringMatching(/"d" in s2\.safetensors/)])
    expect(folder.openNow).toBe(1)
  })

  test('a damaged shard is refused each time it is asked for, and not left open', async () => {
    const folder = memoryFolder({ ...withIndex(good), 's2.safetensors': 'not this' })
    const weights = await openWeights(folder)
    for (let i = 0; i < 2; i++) expect((await refusal(weights.read('c'))).code).toBe('ERR_MODEL_FORMAT')
    expect(folder.openNow).toBe(0)
  })

  test('a folder without weights is refused', async () => {
    expect((await refusal(openWeights(memoryFolder({ 'pytorch_model.bin': 'x' })))).message).toMatch(/neither model\.safetensors nor/)
  })
})

describe('the fixtures', () => {
  const opened: { close(): Promise<void> }[] = []
  afterAll(() => Promise.all(opened.map((weights) => weights.close())))

  test.each(['llama-gqa', 'llama-bias-headdim', 'llama-rope3-tied', 'qwen2', 'mistral-window'])(
    '%s reads by slices as it reads whole',
    async (model) => {
      const folder: ModelFolder = fileFolder(new URL(`../fixtures/tiny-models/${model}/`, import.meta.url).pathname)
      const whole = await openWeights(folder)
      const parts = await openWeights(folder, { mergeGap: 0 })
      opened.push(whole, parts)
      for (const name of whole.names()) {
        const { shape, bytes } = await whole.read(name)
        const dim = shape.length - 1
        const half = Math.floor(shape[dim]! / 2)
        const item = bytes.length / shape.reduce((a, b) => a * b, 1)
        for (const [start, length] of [
          [0, half],
          [half, shape[dim]! - half],
        ] as const) {
          const got = await parts.readSlice(name, dim, start, length)
          expect(Buffer.compare(got.bytes, slice(bytes, item, shape, dim, start, length)), `${name} from ${start}`).toBe(0)
        }
      }
      expect(parts.bytesRead).toBe(whole.bytesRead)
    },
  )
})
