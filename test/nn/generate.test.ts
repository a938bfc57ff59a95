// Generation: the same tokens on every rank, sampling by seed, stops, limits, cancelling, and what damaged model folders give.
import { cp, mkdtemp, open, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { type GenerateOptions, LanguageModel } from '../../runtime/model/generate.ts'
import { runModel } from '../../runtime/model/run.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'

const device = await testDevice()
const dir = join(import.meta.dirname, '../../examples/models/tiny-shakespeare')
const scratch = await mkdtemp(join(tmpdir(), 'rankmesh-generate-'))
afterAll(async () => {
  device.dispose()
  await rm(scratch, { recursive: true })
})

async function write(ranks: number, options: GenerateOptions, prompt: string | number[] = 'KING RICHARD'): Promise<string[]> {
  return launch({ ranks, devices: [device] }, async (context) => {
    using model = await LanguageModel.load(fileFolder(dir), context, { capacity: 128 })
    let text = ''
    for await (const token of model.generate(prompt, options)) text += token.text
    return text
  })
}

describe('generate', () => {
  it('draws the same text on every rank and for every number of ranks, by seed', async () => {
    const options = { temperature: 0.9, topK: 50, topP: 0.95, seed: 7, maxNewTokens: 40 }
    const [one] = await write(1, options)
    for (const text of await write(4, options)) expect(text).toBe(one)
    const [other] = await write(2, { ...options, seed: 8 })
    expect(other).not.toBe(one)
  })

  it('stops at stop tokens, at the limit, and where the cache is full', async () => {
    const [full] = await write(1, { maxNewTokens: 30 })
    expect(full).toHaveLength(30)
    const newline = 10
    const [line] = await write(2, { maxNewTokens: 100, stopIds: [newline] })
    expect(full?.startsWith((line as string).slice(0, 30))).toBe(true)
    expect(line).not.toContain('\n')
    const [all] = await write(2, {})
    expect(all).toHaveLength(128 - 'KING RICHARD'.length + 1)
    expect(await write(2, { maxNewTokens: 0 })).toEqual(['', ''])
  })

  it('refuses prompts that are empty, too long or not of this vocabulary', async () => {
    await expect(write(2, {}, '')).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    await expect(write(2, {}, 'x'.repeat(129))).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('129') })
    await expect(write(2, {}, [1, 256])).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    await expect(write(2, { temperature: -1 })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  })

  it('ends on every rank when the signal aborts, with its reason', async () => {
    const stop = new AbortController()
    const reason = new Error('enough')
    const seen: unknown[] = []
    const run = launch({ ranks: 4, devices: [device] }, async (context) => {
      using model = await LanguageModel.load(fileFolder(dir), context, { capacity: 128 })
      try {
        for await (const { index } of model.generate('ROMEO', { signal: stop.signal }))
          if (index === 5 && context.rank === 1) stop.abort(reason)
      } catch (error) {
        seen.push(error)
        throw error
      }
    })
    await expect(run).rejects.toBe(reason)
    expect(seen).toEqual([reason, reason, reason, reason])
  })

  it('gives all memory back', async () => {
    const before = device.gpu.pool.liveBuffers
    await write(2, { maxNewTokens: 3 })
    expect(device.gpu.pool.liveBuffers).toBe(before)
  })
})

describe('runModel', () => {
  it('streams the text and reports ranks, shards, counts and the share of collectives', async () => {
    let streamed = ''
    let loaded = 0
    const report = await runModel({
      folder: fileFolder(dir),
      ranks: 4,
      devices: [device],
      prompt: 'ROMEO:',
      maxNewTokens: 12,
      profile: true,
      onText: (text) => {
        streamed += text
      },
      onProgress: (progress) => {
        loaded = progress.loaded
      },
    })
    expect(streamed).toBe(report.text)
    expect(report).toMatchObject({ promptTokens: 6, newTokens: 12, perToken: { fused: 9, collectives: 10, submits: 1, maps: 1 } })
    expect(report.ranks.map(({ shard }) => shard.layers[0]?.heads)).toEqual([0, 2, 4, 6].map((start) => ({ start, count: 2 })))
    expect(loaded).toBeGreaterThan(4_000_000)
    expect(loaded).toBeLessThan(5_000_000)
    if (device.gpu.device.features.has('timestamp-query')) {
      expect(report.collectiveShare).toBeGreaterThan(0)
      expect(report.collectiveShare).toBeLessThan(1)
    } else console.log('The share of collectives is not checked: the adapter has no timestamp queries')
  })
})

it('a run that ends at a stop token reports what one token took', async () => {
  const report = await runModel({
    folder: fileFolder(dir),
    ranks: 2,
    devices: [device],
    prompt: 'KING RICHARD',
    maxNewTokens: 100,
    stopIds: [10],
  })
  expect(report.newTokens).toBeLessThan(60)
  expect(report.perToken).toMatchObject({ fused: 9, collectives: 10, submits: 1, maps: 1 })
})

describe('loading', () => {
  it('a rank reads its part of the files', async () => {
    const read = await launch({ ranks: 4, devices: [device] }, async (context) => {
      const weights = await openWeights(fileFolder(dir), { mergeGap: 0 })
      const { Llama } = await import('../../runtime/model/llama.ts')
      const { readConfig } = await import('../../runtime/model/generate.ts')
      using _model = await Llama.load(await readConfig(fileFolder(dir)), weights, context)
      await weights.close()
      return weights.bytesRead
    })
    const total = 4_850_000
    for (const bytes of read) expect(bytes).toBeLessThan(total / 4 + 10_000)
  })

  it('refuses shares that make no sense, or that ranks do not agree on', async () => {
    const load = (shares: (rank: number) => number[]) =>
      launch({ ranks: 2, devices: [device] }, (context) => LanguageModel.load(fileFolder(dir), context, { shares: shares(context.rank) }))
    await expect(load(() => [1, 2, 3])).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('3 of them') })
    await expect(load(() => [0, 0])).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    await expect(load((rank) => [1, 1 + rank])).rejects.toMatchObject({ code: 'ERR_COLLECTIVE_MISMATCH' })
  })

  async function damaged(name: string, change: (folder: string) => Promise<void>): Promise<string> {
    const folder = join(scratch, name)
    await cp(dir, folder, { recursive: true })
    await change(folder)
    return folder
  }

  /** Rewrites the header of model.safetensors; the length stays, so the data stays where it is. */
  async function header(
    folder: string,
    change: (header: Record<string, { dtype: string; shape: number[]; data_offsets: number[] }>) => void,
  ): Promise<void> {
    const path = join(folder, 'model.safetensors')
    const bytes = await readFile(path)
    const length = Number(bytes.readBigUInt64LE(0))
    const json = JSON.parse(bytes.toString('utf8', 8, 8 + length))
    change(json)
    const text = Buffer.from(JSON.stringify(json))
    const fresh = Buffer.alloc(length, ' ')
    if (text.length > length) throw new Error('the changed header is longer')
    text.copy(fresh)
    const file = await open(path, 'r+')
    await file.write(fresh, 0, length, 8)
    await file.close()
  }

  const q = 'model.layers.1.self_attn.q_proj.weight'
  type Header = Record<string, { dtype: string; shape: number[]; data_offsets: number[] }>
  const inHeader = (change: (header: Header) => void) => (folder: string) => header(folder, change)
  const moved = (h: Header): void => {
    Object.assign(h, { x: h[q] })
    delete h[q]
  }

  it.each<[string, string, (folder: string) => Promise<void>]>([
    ['a missing tensor', q, inHeader(moved)],
    ['a tensor of another shape', q, inHeader((h) => Object.assign(h[q] ?? {}, { shape: [128, 512] }))],
    ['a tensor of another type', q, inHeader((h) => Object.assign(h[q] ?? {}, { dtype: 'I8', shape: [256, 512] }))],
    [
      'overlapping tensors',
      'overlap',
      inHeader((h) => Object.assign(h[q] ?? {}, { data_offsets: h['model.layers.0.self_attn.q_proj.weight']?.data_offsets })),
    ],
    ['a file cut short', 'model.safetensors', (folder) => truncate(join(folder, 'model.safetensors'), 100_000)],
    ['a config of another family', 'model_type', (folder) => writeFile(join(folder, 'config.json'), '{"model_type":"gpt2"}')],
    [
      'a vocabulary smaller than the tokenizer',
      'vocab',
      async (folder) => {
        const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'))
        await writeFile(join(folder, 'config.json'), JSON.stringify({ ...config, vocab_size: 200 }))
      },
    ],
  ])('%s gives ERR_MODEL_FORMAT naming it', async (name, mentions, change) => {
    const folder = await damaged(name.replaceAll(' ', '-'), change)
    const run = launch({ ranks: 2, devices: [device] }, (context) => LanguageModel.load(fileFolder(folder), context))
    await expect(run).rejects.toMatchObject({ code: 'ERR_MODEL_FORMAT', message: expect.stringContaining(mentions) })
  })
})
