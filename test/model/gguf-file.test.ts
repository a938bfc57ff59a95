// Headers of GGUF files: what sound ones say, and refusals of damaged and hostile ones before memory is taken for what they claim.
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { type GgufHeader, readGgufHeader } from '../../runtime/model/gguf-file.ts'
import { Bytes, floats, ggufFile, type RawGguf, type RawGgufTensor } from '../support/gguf-files.ts'
import { memoryFolder } from '../support/model-files.ts'
import { Random, seed } from '../support/random.ts'

async function header(file: Uint8Array): Promise<GgufHeader> {
  return readGgufHeader(await memoryFolder({ 'm.gguf': file }).open('m.gguf'))
}

async function refusal(file: Uint8Array): Promise<string> {
  return header(file).then(
    () => expect.fail('nothing was refused'),
    (error: RankmeshError) => {
      expect(error.code, String(error.stack)).toBe('ERR_MODEL_FORMAT')
      return error.message
    },
  )
}

const tensor = (over: Partial<RawGgufTensor> = {}): RawGgufTensor => ({ ...floats('t', [4, 2], new Float32Array(8)), ...over })
const sound: RawGguf = { metadata: [['general.architecture', [8, 'llama']]], tensors: [tensor(), tensor({ name: 'u' })] }

describe('a sound header', () => {
  test('gives every kind of value and every tensor', async () => {
    const metadata: RawGguf['metadata'] = [
      ['u8', [0, 200]],
      ['i8', [1, -3]],
      ['u16', [2, 60000]],
      ['i16', [3, -3]],
      ['u32', [4, 4e9]],
      ['i32', [5, -3]],
      ['f32', [6, 0.5]],
      ['bool', [7, true]],
      ['text', [8, 'größe ▁']],
      ['', [8, '']],
      ['u64', [10, 2 ** 40]],
      ['i64', [11, -(2 ** 40)]],
      ['f64', [12, 0.1]],
      ['texts', [9, [8, ['a', '', 'ü']]]],
      ['none', [9, [8, []]]],
      ['shorts', [9, [3, [1, -2]]]],
      ['longs', [9, [10, [1, 2 ** 40]]]],
      ['flags', [9, [7, [true, false]]]],
    ]
    const file = ggufFile({ metadata, tensors: [tensor(), { name: 'q', dims: [64, 3], type: 8, bytes: new Uint8Array(6 * 34) }] })
    const read = await header(file)
    const plain = [...read.metadata].map(([key, value]) => [key, typeof value === 'object' ? [...value] : value])
    const longs = ['longs', [1, 2 ** 40]]
    expect(plain).toEqual([
      ...metadata.slice(0, 13).map(([key, value]) => [key, (value as [number, unknown])[1]]),
      ['texts', ['a', '', 'ü']],
      ['none', []],
      ['shorts', [1, -2]],
      longs,
      ['flags', [1, 0]],
    ])
    const [t, q] = [...read.tensors.values()]
    expect(t).toMatchObject({ name: 't', type: 'F32', shape: [2, 4] })
    expect(q).toMatchObject({ name: 'q', type: 'Q8_0', shape: [3, 64], begin: (t?.begin ?? 0) + 32 })
    expect((q?.end ?? 0) - (q?.begin ?? 0)).toBe(204)
    expect(file.length - (q?.begin ?? 0)).toBe(224)
  })

  test('may be aligned otherwise, empty, of version 2, or longer than the first read', async () => {
    const aligned = await header(ggufFile({ ...sound, alignment: 4, metadata: [['general.alignment', [4, 4]]] }))
    expect(aligned.tensors.get('u')?.begin).toBe((aligned.tensors.get('t')?.begin ?? 0) + 32)
    expect((await header(ggufFile({ version: 2 }))).tensors.size).toBe(0)
    const tokens = Array.from({ length: 200_000 }, (_, i) => `token ${i}`)
    const long = await header(ggufFile({ ...sound, metadata: [['tokens', [9, [8, tokens]]]] }))
    expect(long.metadata.get('tokens')).toEqual(tokens)
  })

  test('is that of llama.cpp', async () => {
    const read = await header(new Uint8Array(readFileSync(new URL('../fixtures/tiny-gguf/q4_k_m.gguf', import.meta.url))))
    expect(read.metadata.get('llama.feed_forward_length')).toBe(512)
    expect(read.tensors.get('blk.0.ffn_down.weight')).toMatchObject({ type: 'Q4_K', shape: [256, 512], begin: 10176 + 293888 })
    expect(read.tensors.get('output.weight')).toMatchObject({ type: 'Q6_K', shape: [512, 256], begin: 10176 })
  })
})

describe('refused', () => {
  const text = (length: bigint) => new Bytes().u32(8).u64(length).done()
  const list = (type: number, length: bigint) => new Bytes().u32(9).u32(type).u64(length).done()
  const HUGE = 2n ** 63n
  const cases: [string, RawGguf, RegExp][] = [
    ['another magic number', { ...sound, magic: 'GGML' }, /start with "GGUF"/],
    ['version 1', { ...sound, version: 1 }, /version 2 or 3.*says 1/],
    ['version 4', { ...sound, version: 4 }, /says 4/],
    ['big-endian', { ...sound, version: 0x03000000 }, /big-endian/],
    ['2^63 tensors', { ...sound, tensorCount: HUGE }, /9223372036854775808 for the number of tensors/],
    ['a tensor more than there is room for', { ...sound, tensorCount: 1000n }, /number of tensors/],
    ['2^64 - 1 keys', { ...sound, keyCount: 2n ** 64n - 1n }, /number of metadata keys/],
    ['a text of 2^63 bytes', { metadata: [['k', text(HUGE)]] }, /9223372036854775808 for the length of metadata "k"/],
    ['a text longer than the file', { metadata: [['k', text(100n)]] }, /length of metadata "k"/],
    ['a list of 2^63 texts', { metadata: [['k', list(8, HUGE)]] }, /length of metadata "k"/],
    ['a list of 2^61 numbers', { metadata: [['k', list(10, 2n ** 61n)]] }, /length of metadata "k"/],
    ['a list of lists', { metadata: [['k', list(9, 0n)]] }, /array of arrays/],
    ['an unknown type', { metadata: [['k', new Bytes().u32(13).done()]], tensors: [tensor()] }, /"k" is of unknown type 13/],
    ['an unknown element type', { metadata: [['k', list(77, 0n)]] }, /unknown type 77/],
    [
      'a key given twice',
      {
        metadata: [
          ['k', [7, true]],
          ['k', [7, true]],
        ],
      },
      /key "k" twice/,
    ],
    ['a tensor name given twice', { tensors: [tensor(), tensor()] }, /two tensors of the name "t"/],
    ['no dimension', { tensors: [tensor({ dims: [] })] }, /1 to 4 dimensions/],
    ['five dimensions', { tensors: [tensor({ dims: [1, 1, 1, 1, 1] })] }, /1 to 4 dimensions/],
    ['a dimension of 0', { tensors: [tensor({ dims: [0, 4] })] }, /at least 1/],
    ['a dimension of 2^63', { tensors: [tensor({ dims: [HUGE, 1] })] }, /no file can hold/],
    ['dimensions whose product overflows', { tensors: [tensor({ dims: [2n ** 40n, 2n ** 40n] })] }, /counted/],
    ['a tensor larger than the file', { tensors: [tensor({ dims: [1 << 20, 1 << 20] })] }, /cut short/],
    ['rows of part of a block', { tensors: [tensor({ type: 8, dims: [33, 2] })] }, /whole Q8_0 blocks of 32/],
    ['an offset beyond the file', { tensors: [tensor({ offset: 3200 })] }, /cut short/],
    ['an offset of 2^64 - 32', { tensors: [tensor({ offset: 2n ** 64n - 32n })] }, /no file can hold/],
    ['an offset out of line', { tensors: [tensor({ offset: 8 })] }, /alignment 32/],
    [
      'tensors over each other',
      { tensors: [tensor({ dims: [16] }), tensor({ name: 'u', offset: 32 }), tensor({ name: 'v' })] },
      /"u" overlaps tensor "t" by 32/,
    ],
    ['an alignment of 0', { ...sound, metadata: [['general.alignment', [4, 0]]] }, /general\.alignment/],
    ['an alignment of a list', { ...sound, metadata: [['general.alignment', [9, [4, [32]]]]] }, /general\.alignment/],
    ['a type that is not read', { tensors: [tensor({ type: 10 })] }, /"t".*type Q2_K, which is not read.*Q4_K/],
    ['a type that is not known', { tensors: [tensor({ type: 999 })] }, /unknown type 999/],
  ]
  test.each(cases)('%s', async (_, raw, message) => {
    expect(await refusal(ggufFile(raw))).toMatch(message)
  })

  test('text that is not UTF-8', async () => {
    const value = new Bytes().u32(8).u64(2).raw(Uint8Array.of(0xff, 0xfe)).done()
    expect(await refusal(ggufFile({ metadata: [['k', value]] }))).toMatch(/"k" is not valid UTF-8/)
  })

  test('a file that is cut short anywhere', async () => {
    const file = ggufFile({ ...sound, metadata: [...(sound.metadata ?? []), ['l', [9, [8, ['a', 'bc']]]], ['n', [12, 1]]] })
    for (let length = 0; length < file.length; length++) expect(await refusal(file.subarray(0, length))).toMatch(/./)
  })

  test('or read for what it is: files with random bytes changed', async () => {
    const at = seed()
    const random = new Random(at)
    const file = ggufFile({ ...sound, metadata: [...(sound.metadata ?? []), ['l', [9, [8, ['a', 'bc']]]], ['n', [12, 1]]] })
    let refused = 0
    for (let round = 0; round < 2000; round++) {
      const bad = file.slice()
      for (let i = 0; i <= random.int(3); i++) bad[random.int(200)] = random.int(256)
      await header(bad).catch((error: RankmeshError) => {
        expect(error.code, `seed ${at}, round ${round}: ${error.stack}`).toBe('ERR_MODEL_FORMAT')
        refused++
      })
    }
    expect(refused).toBeGreaterThan(500)
  })
})
