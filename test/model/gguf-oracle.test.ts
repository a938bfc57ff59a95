// GGUF headers by two readers, ours and Hugging Face's: they say the same of sound files, and where they differ is why models are read with ours.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { GGMLQuantizationType, type GGUFParseOutput, gguf } from '@huggingface/gguf'
import { afterAll, describe, expect, test } from 'vitest'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { type GgufHeader, readGgufHeader } from '../../runtime/model/gguf-file.ts'
import type { ModelFolder } from '../../runtime/model/source.ts'
import { fetchFolder } from '../../runtime/model/source-fetch.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { Bytes, floats, ggufFile, type RawGguf, type RawGgufTensor, type RawValue } from '../support/gguf-files.ts'
import { LLAMA, modelFile, tensorsOf } from '../support/gguf-models.ts'
import { randomFile, randomTensors, randomText } from '../support/gguf-random.ts'
import { Random, seed } from '../support/random.ts'
import { smollm2Gguf } from '../support/smollm2.ts'

const folder = mkdtempSync(join(tmpdir(), 'rankmesh-gguf-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** The same bytes as a file, which both read from the disk. */
function onDisk(bytes: Uint8Array): string {
  const path = join(folder, 'model.gguf')
  writeFileSync(path, bytes)
  return path
}

type Theirs = GGUFParseOutput<{ strict: false }>
const readTheirs = (path: string): Promise<Theirs> => gguf(path, { allowLocalFile: true })

async function readOurs(model: ModelFolder): Promise<GgufHeader> {
  const source = await model.open(model.gguf as string)
  return readGgufHeader(source).finally(() => source.close())
}

/** The message of our refusal. */
async function refusal(model: ModelFolder): Promise<string> {
  return readOurs(model).then(
    () => expect.fail('nothing was refused'),
    (error: RankmeshError) => {
      expect(error.code, String(error.stack)).toBe('ERR_MODEL_FORMAT')
      return error.message
    },
  )
}

/** 64-bit integers as numbers, lists of truth values as 0 and 1, lists of any kind as arrays. */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number(value)
  return typeof value === 'object'
    ? Array.from(value as Iterable<unknown>, (item) => (typeof item === 'string' ? item : Number(item)))
    : value
}

const plainMap = (entries: Iterable<[string, unknown]>) => new Map(Array.from(entries, ([key, value]) => [key, plain(value)]))

function plainOurs({ metadata, tensors }: GgufHeader) {
  return {
    metadata: plainMap(metadata),
    tensors: Array.from(tensors.values(), ({ name, type, shape, begin }) => ({ name, type, shape, begin })),
  }
}

function plainTheirs({ metadata: { version, tensor_count, kv_count, ...metadata }, tensorInfos, tensorDataOffset }: Theirs) {
  return {
    metadata: plainMap(Object.entries(metadata)),
    tensors: tensorInfos.map(({ name, dtype, shape, offset }) => ({
      name,
      type: GGMLQuantizationType[dtype],
      shape: shape.map(Number).reverse(),
      begin: Number(tensorDataOffset + offset),
    })),
  }
}

/** Compares what both say of one file; gives the number of keys and tensors. */
async function same(path: string, label: string): Promise<{ keys: number; tensors: number }> {
  const ours = plainOurs(await readOurs(fileFolder(path)))
  expect(ours, label).toEqual(plainTheirs(await readTheirs(path)))
  return { keys: ours.metadata.size, tensors: ours.tensors.length }
}

describe('both readers say the same of', () => {
  test.each(['f16', 'q4_0', 'q4_k_m', 'q5_k_m', 'q6_k', 'q8_0'])('the fixture %s', async (name) => {
    const { keys, tensors } = await same(fileURLToPath(new URL(`../fixtures/tiny-gguf/${name}.gguf`, import.meta.url)), name)
    expect([keys, tensors]).toEqual([22, 21])
  })

  test('a model made in memory', async () => {
    const at = seed()
    const { keys, tensors } = await same(onDisk(modelFile(LLAMA, tensorsOf(new Random(at)))), `seed ${at}`)
    expect([keys, tensors]).toEqual([Object.keys(LLAMA).length, 21])
  })

  test('random files: versions 2 and 3, all kinds of values, all types of tensors, many alignments', async () => {
    const at = seed()
    const random = new Random(at)
    const seen = { keys: 0, tensors: 0 }
    for (let round = 0; round < 100; round++) {
      const { keys, tensors } = await same(onDisk(randomFile(random, 2 ** random.int(13))), `seed ${at}, round ${round}`)
      seen.keys += keys
      seen.tensors += tensors
    }
    expect(Math.min(seen.keys, seen.tensors), `seed ${at}`).toBeGreaterThan(300)
  })

  test('a header of several megabytes', async () => {
    const at = seed()
    const random = new Random(at)
    // An empty text at the end: it cannot be cut where the other reader's bytes at hand end.
    const tokens = Array.from({ length: 150_000 + random.int(1000) }, (_, i) => `${randomText(random)}${i}`).concat('')
    const scores = tokens.map(() => random.normal())
    const metadata: RawGguf['metadata'] = [
      ['tokens', [9, [8, tokens]]],
      ['scores', [9, [6, scores]]],
    ]
    expect(await same(onDisk(ggufFile({ metadata, tensors: randomTensors(random, 32) })), `seed ${at}`)).toMatchObject({ keys: 2 })
  })

  test('damaged files, where ours refuses nothing', async () => {
    const at = seed()
    const random = new Random(at)
    const file = ggufFile({ metadata: Object.entries(LLAMA) as [string, RawValue][], tensors: [...tensorsOf(random).values()] })
    let read = 0
    for (let round = 0; round < 300; round++) {
      const bad = file.slice()
      for (let i = 0; i <= random.int(3); i++) bad[random.int(2000)] = random.int(256)
      const path = onDisk(bad)
      const taken = await readOurs(fileFolder(path)).then(
        () => true,
        () => false,
      )
      if (!taken) continue
      await same(path, `seed ${at}, round ${round}`)
      read++
    }
    expect(read, `seed ${at}`).toBeGreaterThan(20)
  })
})

const smollm2 = await smollm2Gguf()
describe.skipIf(!smollm2)('SmolLM2 (skipped where its file is not there)', () => {
  test('is the same to both readers', async () => {
    if (smollm2) expect((await same(smollm2.file, 'SmolLM2')).tensors).toBe(272)
  })
})

const tensor = (over: Partial<RawGgufTensor> = {}): RawGgufTensor => ({ ...floats('t', [4, 2], new Float32Array(8)), ...over })
const one = (over: Partial<RawGgufTensor>): RawGguf => ({ tensors: [tensor(over)] })
const value = (given: RawValue): RawGguf => ({ metadata: [['k', given]] })
const aligned = (given: RawValue, alignment?: number): RawGguf => ({
  metadata: [['general.alignment', given]],
  tensors: [tensor()],
  ...(alignment !== undefined && { alignment }),
})
const first = (file: Theirs) => file.tensorInfos[0]

describe('the other reader takes, and ours refuses,', () => {
  const cases: [what: string, raw: RawGguf, look: (file: Theirs) => unknown, given: unknown, message: RegExp][] = [
    [
      'a key given twice',
      {
        metadata: [
          ['k', [4, 1]],
          ['k', [4, 2]],
        ],
      },
      ({ metadata }) => metadata.k,
      2,
      /key "k" twice/,
    ],
    ['a tensor given twice', { tensors: [tensor(), tensor()] }, (file) => file.tensorInfos.length, 2, /two tensors of the name "t"/],
    [
      'tensors over each other',
      { tensors: [tensor(), tensor({ name: 'u', offset: 0 })] },
      ({ tensorInfos }) => tensorInfos.map(({ offset }) => offset),
      [0n, 0n],
      /"u" overlaps tensor "t" by 32/,
    ],
    ['a tensor beyond the file', one({ offset: 1 << 30 }), (file) => first(file)?.offset, 1n << 30n, /cut short/],
    ['an offset of 2^64 - 32', one({ offset: 2n ** 64n - 32n }), (file) => first(file)?.offset, 2n ** 64n - 32n, /no file can hold/],
    ['a tensor larger than the file', one({ dims: [1 << 20, 1 << 20] }), (file) => first(file)?.shape, [1n << 20n, 1n << 20n], /cut short/],
    ['an offset out of line', one({ offset: 8 }), (file) => first(file)?.offset, 8n, /alignment 32/],
    ['a part of a block', one({ type: 8, dims: [3] }), (file) => first(file)?.shape, [3n], /whole Q8_0 blocks/],
    ['a type that is not known', one({ type: 999 }), (file) => first(file)?.dtype, 999, /unknown type 999/],
    ['a dimension of 0', one({ dims: [0, 4] }), (file) => first(file)?.shape, [0n, 4n], /at least 1/],
    ['no dimension', one({ dims: [] }), (file) => first(file)?.shape, [], /1 to 4 dimensions/],
    [
      'text that is not UTF-8',
      value(new Bytes().u32(8).u64(2).raw(Uint8Array.of(0xff, 0xfe)).done()),
      ({ metadata }) => metadata.k,
      '\ufffd\ufffd',
      /not valid UTF-8/,
    ],
    ['an alignment of true', aligned([7, true]), (file) => file.tensorDataOffset, 95n, /general\.alignment/],
    ['an alignment of a text', aligned([8, ' 0x40 ']), (file) => file.tensorDataOffset, 128n, /general\.alignment/],
    ['an alignment of 2^31', aligned([4, 2 ** 31]), (file) => file.tensorDataOffset, BigInt(-(2 ** 31)), /general\.alignment/],
    [
      'a list of a million numbers in a file of 64 bytes',
      value(new Bytes().u32(9).u32(10).u64(1_000_000).done()),
      ({ metadata }) => (metadata.k as bigint[]).filter((item) => item === 0n).length,
      1_000_000,
      /1000000 for the length of metadata "k", but only 15 bytes follow/,
    ],
  ]
  test.each(cases)('%s', async (_, raw, look, given, message) => {
    const path = onDisk(ggufFile(raw))
    expect(look(await readTheirs(path))).toEqual(given)
    expect(await refusal(fileFolder(path))).toMatch(message)
  })

  test('files cut short anywhere: it reads zeros in place of what is missing', async () => {
    const tensors = [tensor({ name: 'long name', dims: [2, 2, 2] }), tensor({ name: 'u' })]
    const file = ggufFile({
      metadata: [
        ['list', [9, [8, ['abc', 'de']]]],
        ['n', [12, 1]],
      ],
      tensors,
    })
    for (let length = 5; length < file.length; length++) {
      const path = onDisk(file.subarray(0, length))
      expect(await refusal(fileFolder(path))).toMatch(/./)
      expect((await readTheirs(path)).tensorInfos.length, `${length} bytes`).toBe(length <= 8 ? 0 : 2)
    }
  })

  test('the page of a server that fails, as numbers', async () => {
    const numbers = Array.from({ length: 600_000 }, () => 7)
    const file = ggufFile(value([9, [4, numbers]]))
    const serve = async (_: unknown, init?: RequestInit): Promise<Response> => {
      const [, begin, last] = /^bytes=(\d+)-(\d+)$/.exec(new Headers(init?.headers).get('range') ?? '') ?? []
      if (Number(last) >= 2_000_000) return new Response('Service unavailable', { status: 503 })
      const headers = { 'content-range': `bytes ${begin}-${last}/${file.length}` }
      return new Response(file.subarray(Number(begin), Number(last) + 1), { status: 206, headers })
    }
    const { metadata } = await gguf('http://models/model.gguf', { fetch: serve })
    const read = (metadata as Record<string, unknown>).k as number[]
    const wrong = read.findIndex((item) => item !== 7)
    expect(read).toHaveLength(600_000)
    expect(Buffer.from(Uint32Array.from(read.slice(wrong, wrong + 6)).buffer).toString()).toContain('rvice unavailable')
    expect(await refusal(fetchFolder('http://models/model.gguf', { fetch: serve }))).toMatch(/answered 503/)
  })
})

describe('of sound files the other reader gives, and ours does not,', () => {
  test('a last text cut where its first 2,000,000 bytes end', async () => {
    // 24 bytes of counts, 13 of the key and its length, 4 + 4 + 8 of types and length, 8 + 8 of the lengths of both texts: 4 are left for the last.
    const texts = ['x'.repeat(2_000_000 - 69 - 4), 'last text']
    const path = onDisk(
      ggufFile({
        metadata: [
          ['texts', [9, [8, texts]]],
          ['next', [4, 9]],
        ],
        tensors: [tensor()],
      }),
    )
    const { metadata, tensorInfos } = await readTheirs(path)
    expect(metadata.texts).toEqual([texts[0], 'last'])
    expect([metadata.next, tensorInfos.length]).toEqual([9, 1])
    expect((await readOurs(fileFolder(path))).metadata.get('texts')).toEqual(texts)
  })

  test('texts and keys without the U+FEFF that they begin with', async () => {
    const texts = ['\ufeff', '\ufeffa', 'a']
    const path = onDisk(ggufFile({ metadata: [['\ufefftexts', [9, [8, texts]]]] }))
    expect((await readTheirs(path)).metadata.texts).toEqual(['', 'a', 'a'])
    expect((await readOurs(fileFolder(path))).metadata.get('\ufefftexts')).toEqual(texts)
  })

  test('a list as the prototype of its result, and keys in place of what it counts itself', async () => {
    const path = onDisk(
      ggufFile({
        metadata: [
          ['__proto__', [9, [8, ['a']]]],
          ['version', [4, 7]],
        ],
      }),
    )
    const { metadata } = await readTheirs(path)
    expect(Object.getPrototypeOf(metadata)).toEqual(['a'])
    expect([Object.hasOwn(metadata, '__proto__'), metadata.version]).toEqual([false, 7])
    expect([...(await readOurs(fileFolder(path))).metadata]).toEqual([
      ['__proto__', ['a']],
      ['version', 7],
    ])
  })

  test('places of tensors at no multiple of the alignment, where that is no power of two', async () => {
    const path = onDisk(ggufFile(aligned([4, 24], 24)))
    expect((await readTheirs(path)).tensorDataOffset).toBe(104n)
    expect((await readOurs(fileFolder(path))).tensors.get('t')?.begin).toBe(120)
  })
})
