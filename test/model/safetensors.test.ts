// Safetensors files: what a good one holds, whole and in slices, and that every damaged or hostile one is refused by name.
import { describe, expect, test } from 'vitest'
import { dtypeSize } from '../../runtime/core/dtype.ts'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { SafetensorsFile } from '../../runtime/model/safetensors.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { memoryFolder, safetensors, safetensorsOf } from '../support/model-files.ts'
import { Random, seed } from '../support/random.ts'

const NAMES = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
  F8_E4M3: 'float8_e4m3fn',
  F8_E5M2: 'float8_e5m2',
  I8: 'int8',
  U8: 'uint8',
  I32: 'int32',
  U32: 'uint32',
  I64: 'int64',
  U64: 'uint64',
} as const

const counting = (n: number) => Uint8Array.from({ length: n }, (_, i) => i)

async function openBytes(bytes: Uint8Array): Promise<SafetensorsFile> {
  return SafetensorsFile.open(await memoryFolder({ 'x.safetensors': bytes }).open('x.safetensors'))
}

/** The message of the ERR_MODEL_FORMAT that opening `bytes` throws. */
async function refusal(bytes: Uint8Array): Promise<string> {
  const error = await openBytes(bytes).then(
    () => expect.fail('the file was accepted'),
    (e: RankmeshError) => e,
  )
  expect(error.code, error.stack).toBe('ERR_MODEL_FORMAT')
  expect(error.message).toContain('x.safetensors')
  return error.message
}

const tensor = (over: object) => safetensors({ good: { dtype: 'F32', shape: [1], data_offsets: [0, 4], ...over } }, new Uint8Array(4))

describe('a good file', () => {
  test.each(Object.entries(NAMES))('holds %s tensors', async (stored, dtype) => {
    const bytes = counting(6 * dtypeSize(dtype))
    const weights = await openWeights(memoryFolder({ 'model.safetensors': safetensorsOf({ t: { dtype: stored, shape: [2, 3], bytes } }) }))
    expect(await weights.read('t')).toEqual({ dtype, shape: [2, 3], bytes })
  })

  test('gives absolute offsets, metadata and names in order', async () => {
    const file = await openBytes(
      safetensorsOf({
        b: { dtype: 'U8', shape: [3], bytes: counting(3) },
        a: { dtype: 'I8', shape: [], bytes: counting(1) },
        none: { dtype: 'F32', shape: [0, 7], bytes: counting(0) },
      }),
    )
    expect([...file.tensors.keys()]).toEqual(['b', 'a', 'none'])
    expect(file.metadata).toEqual(new Map([['format', 'pt']]))
    const b = file.tensors.get('b')!
    expect(await file.source.read(b.begin, b.end - b.begin)).toEqual(counting(3))
    expect(file.tensors.get('a')).toMatchObject({ begin: b.end, end: b.end + 1, shape: [] })
  })

  test('may lie unaligned, out of order and be padded with spaces', async () => {
    const header = { a: { dtype: 'F32', shape: [1], data_offsets: [1, 5] }, b: { dtype: 'U8', shape: [1], data_offsets: [0, 1] } }
    const bytes = safetensors(`${JSON.stringify(header)}   `, counting(5))
    const weights = await openWeights(memoryFolder({ 'model.safetensors': bytes }))
    expect((await weights.read('a')).bytes).toEqual(Uint8Array.of(1, 2, 3, 4))
  })

  test('may use any characters in names', async () => {
    const names = ['a"b', 'a\\', '{"x":1}', 'a:b', '', 'ä😀', 'constructor', 'toString', 'dtype']
    const tensors = Object.fromEntries(names.map((name, i) => [name, { dtype: 'U8', shape: [1], bytes: Uint8Array.of(i) }]))
    const weights = await openWeights(memoryFolder({ 'model.safetensors': safetensorsOf(tensors) }))
    expect(weights.names()).toEqual(names)
    for (const [i, name] of names.entries()) expect((await weights.read(name)).bytes).toEqual(Uint8Array.of(i))
  })

  test('may hold no tensor at all', async () => {
    expect((await openBytes(safetensors('{}'))).tensors.size).toBe(0)
  })
})

describe('a damaged or hostile file is refused', () => {
  const whole = safetensorsOf({ good: { dtype: 'F32', shape: [1], bytes: new Uint8Array(4) } })
  const lengthOnly = (n: bigint) => {
    const out = whole.slice()
    new DataView(out.buffer).setBigUint64(0, n, true)
    return out
  }
  const files: [string, Uint8Array, RegExp][] = [
    ['empty', new Uint8Array(0), /has 0 bytes/],
    ['shorter than 8 bytes', whole.slice(0, 7), /has 7 bytes/],
    ['header length 0', lengthOnly(0n), /says 0;/],
    ['header above 100 MB', lengthOnly(100_000_001n), /says 100000001;/],
    ['header length of all ones', lengthOnly(2n ** 64n - 1n), /says 18446744073709551615;/],
    ['header beyond the file', lengthOnly(BigInt(whole.length - 7)), /cut short/],
    ['header that is a list', safetensors('[]'), /start with '\{'/],
    ['header that starts with a space', safetensors(' {}'), /start with '\{'/],
    ['header that is no JSON', safetensors('{"a": }'), /not valid JSON/],
    ['header with a comment after it', safetensors('{} // x'), /not valid JSON/],
    ['header that is not UTF-8', safetensors(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d)), /not valid UTF-8/],
    ['deep nesting', safetensors(`{"a":${'['.repeat(1e5)}${']'.repeat(1e5)}}`), /nests brackets/],
    ['a tensor name twice', safetensors('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}'), /"a" twice/],
    ['a tensor name twice, once escaped', safetensors('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061":1}'), /"a" twice/],
    ['a name with a quote in it twice', safetensors('{"a\\":":1,"a\\":":2}'), /twice/],
    ['a key of a tensor twice', safetensors('{"a":{"dtype":"U8","dtype":"F32","shape":[0],"data_offsets":[0,0]}}'), /"dtype" twice/],
    ['a tensor named __proto__', safetensors('{"__proto__":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), /__proto__/],
    ['__proto__ inside a tensor', safetensors('{"a":{"__proto__":{"dtype":"U8"},"shape":[0],"data_offsets":[0,0]}}'), /__proto__/],
    ['a tensor that is a number', safetensors('{"a":1}'), /"a".*object/],
    ['no dtype', tensor({ dtype: undefined }), /"good".*unknown dtype undefined/],
    ['an unknown dtype', tensor({ dtype: 'F128' }), /"good".*unknown dtype "F128"/],
    ['an inherited dtype', tensor({ dtype: 'toString' }), /"good".*unknown dtype/],
    ['a dtype that cannot be printed', tensor({ dtype: { toString: 1, constructor: { name: { toString: 1 } } } }), /"good".*unknown dtype/],
    ['F64', tensor({ dtype: 'F64', shape: [1] }), /"good".*F64 is not read/],
    ['BOOL', tensor({ dtype: 'BOOL', shape: [4] }), /"good".*BOOL is not read/],
    ['no shape', tensor({ shape: undefined }), /"good".*shape/],
    ['a shape that is a number', tensor({ shape: 1 }), /"good".*shape/],
    ['NaN in a shape', tensor({ shape: [null] }), /"good".*\[null\]/],
    ['a fraction in a shape', tensor({ shape: [1.5] }), /"good".*\[1\.5\]/],
    ['a negative number in a shape', tensor({ shape: [-1] }), /"good".*\[-1\]/],
    ['two negative numbers in a shape', tensor({ shape: [-1, -1] }), /"good".*\[-1,-1\]/],
    ['a text in a shape', tensor({ shape: ['1'] }), /"good".*\["1"\]/],
    ['a list in a shape', tensor({ shape: [[1]] }), /"good".*\[\[1\]\]/],
    ['an infinite shape', safetensors('{"good":{"dtype":"U8","shape":[1e400],"data_offsets":[0,0]}}'), /"good".*Infinity/],
    ['a shape above 2^53', safetensors('{"good":{"dtype":"U8","shape":[9007199254740993],"data_offsets":[0,0]}}'), /"good".*shape/],
    ['a product that overflows', tensor({ shape: [2 ** 40, 2 ** 40] }), /"good".*counted exactly/],
    ['a product that overflows before a 0', tensor({ shape: [2 ** 40, 2 ** 40, 0] }), /"good".*counted exactly/],
    ['a product that wraps to the size at 2^64', tensor({ shape: [2 ** 32, 2 ** 32, 1] }), /"good".*counted exactly/],
    ['no offsets', tensor({ data_offsets: undefined }), /"good".*data_offsets/],
    ['one offset', tensor({ data_offsets: [0] }), /"good".*data_offsets/],
    ['three offsets', tensor({ data_offsets: [0, 4, 4] }), /"good".*data_offsets/],
    ['offsets that are texts', tensor({ data_offsets: ['0', '4'] }), /"good".*data_offsets/],
    ['negative offsets', tensor({ data_offsets: [-4, 0] }), /"good".*data_offsets/],
    ['a fractional offset', tensor({ data_offsets: [0, 4.5] }), /"good".*data_offsets/],
    ['reversed offsets', tensor({ data_offsets: [4, 0] }), /"good".*end before they begin/],
    ['offsets beyond the data', tensor({ data_offsets: [1, 5] }), /"good".*outside the 4 bytes/],
    ['offsets near 2^53', tensor({ data_offsets: [Number.MAX_SAFE_INTEGER - 4, Number.MAX_SAFE_INTEGER] }), /"good".*outside/],
    ['a size that is too small', tensor({ shape: [2] }), /"good".*takes 8 bytes.*give 4/],
    ['a size that is too large', tensor({ dtype: 'U8' }), /"good".*takes 1 bytes.*give 4/],
    ['metadata that is a text', safetensors({ __metadata__: 'pt' }), /__metadata__/],
    ['metadata that is null', safetensors({ __metadata__: null }), /__metadata__/],
    ['metadata that holds a number', safetensors({ __metadata__: { a: 1 } }), /"a" in __metadata__/],
  ]
  test.each(files)('%s', async (_, bytes, message) => {
    expect(await refusal(bytes)).toMatch(message)
  })

  const pair = (a: [number, number], b: [number, number], data: number) =>
    safetensors(
      {
        a: { dtype: 'U8', shape: [a[1] - a[0]], data_offsets: a },
        b: { dtype: 'U8', shape: [b[1] - b[0]], data_offsets: b },
      },
      new Uint8Array(data),
    )
  test.each<[string, Uint8Array, RegExp]>([
    ['overlapping tensors', pair([0, 4], [3, 6], 6), /"b" overlaps tensor "a" by 1 bytes/],
    ['one tensor inside another', pair([0, 6], [2, 4], 6), /"b" overlaps tensor "a"/],
    ['two tensors in one place', pair([0, 4], [0, 4], 4), /overlaps/],
    ['a hole at the start', pair([1, 2], [2, 4], 4), /1 bytes between the header and tensor "a"/],
    ['a hole between tensors', pair([0, 2], [3, 4], 4), /1 bytes between tensor "a" and tensor "b"/],
    ['a hole at the end', pair([0, 2], [2, 3], 4), /1 bytes after tensor "b"/],
  ])('%s', async (_, bytes, message) => {
    expect(await refusal(bytes)).toMatch(message)
  })

  test('any file cut short or with one byte changed: refused or read, never another error', async () => {
    const random = new Random(seed())
    const bytes = safetensorsOf({
      a: { dtype: 'F32', shape: [2, 2], bytes: counting(16) },
      b: { dtype: 'U8', shape: [3], bytes: counting(3) },
    })
    for (let n = 0; n < bytes.length; n++) await refusal(bytes.slice(0, n))
    let refused = 0
    for (let i = 0; i < 2000; i++) {
      const changed = bytes.slice()
      changed[random.int(bytes.length - 19)] = random.int(256)
      await openBytes(changed).catch((error: RankmeshError) => {
        expect(error.code, error.stack).toBe('ERR_MODEL_FORMAT')
        refused++
      })
    }
    expect(refused).toBeGreaterThan(1000)
  })
})
