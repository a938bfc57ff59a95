// Model folders on a disk and behind HTTP: exact ranges, names that would leave the folder, and servers of every kind.
import { readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { fetchFolder } from '../../runtime/model/source-fetch.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { safetensorsOf } from '../support/model-files.ts'

const CONTENT = Uint8Array.from({ length: 5000 }, (_, i) => i * 7)
const HOSTILE = ['../secret', '..', '.', '', 'a/b', 'a\\b', '/etc/passwd', 'C:x', 'x\0.json', 'x\n']

async function refusal(work: Promise<unknown>): Promise<RankmeshError> {
  return work.then(
    () => expect.fail('nothing was refused'),
    (e: RankmeshError) => e,
  )
}

const formatError = (message: RegExp) => expect.objectContaining({ code: 'ERR_MODEL_FORMAT', message: expect.stringMatching(message) })

describe('a folder on a disk', () => {
  let dir: string
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'rankmesh-source-'))
    await writeFile(join(dir, 'data.bin'), CONTENT)
    await writeFile(join(dir, 'empty'), '')
    await writeFile(join(dir, 'text.json'), '\ufeff{"ä": "😀"}')
    await writeFile(join(dir, 'latin1.json'), Uint8Array.of(0x22, 0xe4, 0x22))
    await mkdir(join(dir, 'sub'))
    await symlink(join(dir, 'data.bin'), join(dir, 'link.bin'))
  })
  afterAll(() => rm(dir, { recursive: true }))

  test.each([
    [0, 5000],
    [0, 0],
    [5000, 0],
    [4999, 1],
    [17, 1234],
  ])('reads %i + %i', async (offset, length) => {
    const source = await fileFolder(`${dir}/`).open('data.bin')
    expect(source.name).toBe(`${dir}/data.bin`)
    expect(await source.size()).toBe(5000)
    expect(await source.read(offset, length)).toEqual(CONTENT.slice(offset, offset + length))
    await source.close()
  })

  test.each([
    [0, 5001],
    [5000, 1],
    [-1, 2],
    [0, -1],
    [0.5, 1],
    [0, Number.NaN],
    [2 ** 53, 1],
  ])('refuses %d + %d', async (offset, length) => {
    const source = await fileFolder(dir).open('data.bin')
    expect(await refusal(source.read(offset, length))).toEqual(formatError(/data\.bin/))
    await source.close()
  })

  test('says so when a file is cut short while it is open', async () => {
    await writeFile(join(dir, 'shrinks'), CONTENT)
    const source = await fileFolder(dir).open('shrinks')
    await truncate(join(dir, 'shrinks'), 100)
    expect(await refusal(source.read(0, 5000))).toEqual(formatError(/ended at byte 100/))
    await source.close()
  })

  test('follows links inside the folder, as model caches have them', async () => {
    const source = await fileFolder(dir).open('link.bin')
    expect(await source.size()).toBe(5000)
    await source.close()
  })

  test('reads text and refuses what is not UTF-8', async () => {
    const folder = fileFolder(dir)
    expect(await folder.text('text.json')).toBe('{"ä": "😀"}')
    expect(await folder.text('empty')).toBe('')
    expect(await refusal(folder.text('latin1.json'))).toEqual(formatError(/latin1\.json is not valid UTF-8/))
  })

  test('knows what is there; a directory is no file', async () => {
    const folder = fileFolder(dir)
    expect(await Promise.all(['data.bin', 'absent', 'sub'].map((file) => folder.exists(file)))).toEqual([true, false, false])
    expect(await refusal(folder.open('absent'))).toEqual(formatError(/no file absent/))
    expect(await refusal(folder.open('sub'))).toEqual(formatError(/no file sub/))
    expect(await fileFolder(join(dir, 'nowhere')).exists('data.bin')).toBe(false)
  })

  test.each(HOSTILE)('refuses the name %j', async (name) => {
    const folder = fileFolder(dir)
    for (const work of [folder.open(name), folder.text(name), folder.exists(name)])
      expect(await refusal(work)).toEqual(formatError(/paths are refused/))
  })
})

describe('a path to a GGUF file', () => {
  const at = (folder: { name: string; gguf?: string }) => [folder.name, folder.gguf]

  test('is its folder and its name; other paths are folders', () => {
    expect(at(fileFolder('/models/big/tiny.gguf'))).toEqual(['/models/big', 'tiny.gguf'])
    expect(at(fileFolder('tiny.GGUF'))).toEqual(['.', 'tiny.GGUF'])
    expect(at(fileFolder('/tiny.gguf'))).toEqual(['/', 'tiny.gguf'])
    for (const path of ['/models/tiny.gguf/', '/models/gguf', '/models/x.gguf.d']) expect(fileFolder(path).gguf).toBeUndefined()
    expect(at(fetchFolder('https://x.y/a%20b/tiny%20q8.gguf'))).toEqual(['https://x.y/a%20b', 'tiny q8.gguf'])
    expect(at(fetchFolder('models/100%.gguf'))).toEqual(['models', '100%.gguf'])
    expect(fetchFolder('https://x.y/gguf').gguf).toBeUndefined()
  })

  test('that is not there is refused by its name', async () => {
    expect(await refusal(openWeights(fileFolder(join(tmpdir(), 'nowhere', 'tiny.gguf'))))).toEqual(formatError(/no file tiny\.gguf/))
  })
})

describe('a folder behind HTTP', () => {
  const weights = safetensorsOf({ t: { dtype: 'U8', shape: [500, 10], bytes: CONTENT } })
  const files: Record<string, Uint8Array> = {
    'data.bin': CONTENT,
    empty: new Uint8Array(0),
    'model.safetensors': weights,
    'tiny q8.gguf': readFileSync(new URL('../fixtures/tiny-gguf/q8_0.gguf', import.meta.url)),
    'a b#?.txt': Buffer.from('odd'),
  }
  let server: Server
  let base: string
  const log: string[] = []

  /** /ranges serves ranges, /plain does not, /wrong sends other bytes than asked for, /page answers everything with a page. */
  function answer(request: IncomingMessage, response: ServerResponse): void {
    const [, kind, name] = request.url!.split('/') as [string, string, string]
    const bytes = files[decodeURIComponent(name)]
    const range = request.headers.range?.match(/^bytes=(\d+)-(\d+)$/)
    log.push(`${request.method} ${request.url} ${request.headers.range} ${request.headers.authorization}`)
    if (kind === 'page') return void response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end('<html>')
    if (kind === 'broken') return void response.writeHead(503).end('no')
    if (!bytes) return void response.writeHead(404).end('no such file')
    if (kind === 'plain' || !range)
      return void response.writeHead(200, { 'content-length': bytes.length }).end(request.method === 'HEAD' ? '' : bytes)
    const [begin, last] = [Number(range[1]), Math.min(Number(range[2]), bytes.length - 1)]
    if (begin >= bytes.length) return void response.writeHead(416, { 'content-range': `bytes */${bytes.length}` }).end()
    const shift = kind === 'wrong' && begin > 0 ? 1 : 0
    const total = kind === 'hidden' ? {} : { 'content-range': `bytes ${begin + shift}-${last + shift}/${bytes.length}` }
    response.writeHead(206, total).end(bytes.subarray(begin, last + 1))
  }

  beforeAll(async () => {
    server = createServer(answer)
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
    base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  })
  afterAll(() => new Promise((done) => server.close(done)))

  test.each(['ranges', 'plain', 'hidden'])('gives exact ranges from a server of kind %s', async (kind) => {
    const source = await fetchFolder(`${base}/${kind}/`).open('data.bin')
    expect(await source.size()).toBe(5000)
    for (const [offset, length] of [
      [0, 5000],
      [0, 0],
      [4999, 1],
      [17, 1234],
    ] as const) {
      expect(await source.read(offset, length)).toEqual(CONTENT.slice(offset, offset + length))
    }
    expect(await refusal(source.read(4999, 2))).toEqual(formatError(/data\.bin/))
    await source.close()
  })

  test('fetches a file once where ranges are not served', async () => {
    log.length = 0
    const source = await fetchFolder(`${base}/plain`).open('data.bin')
    await source.read(0, 10)
    await source.read(100, 10)
    expect(log.length).toBe(1)
  })

  test('reads weights', async () => {
    const opened = await openWeights(fetchFolder(new URL(`${base}/ranges`)))
    expect((await opened.readSlice('t', 1, 3, 2)).bytes.slice(0, 4)).toEqual(Uint8Array.of(21, 28, 91, 98))
    expect((await opened.readSlice('t', 0, 1, 1)).bytes).toEqual(CONTENT.slice(10, 20))
  })

  test.each(['ranges', 'plain'])('reads a GGUF file, its server serving %s', async (kind) => {
    const folder = fetchFolder(`${base}/${kind}/tiny%20q8.gguf`)
    const gguf = await openWeights(folder)
    const { bytes } = await gguf.readSlice('model.layers.1.mlp.down_proj.weight', 1, 256, 256)
    const here = await openWeights(fileFolder(new URL('../fixtures/tiny-gguf/q8_0.gguf', import.meta.url).pathname))
    expect(bytes).toEqual((await here.readSlice('model.layers.1.mlp.down_proj.weight', 1, 256, 256)).bytes)
    await Promise.all([gguf.close(), here.close()])
  })

  test('knows what is there', async () => {
    const folder = fetchFolder(`${base}/ranges`)
    expect(await Promise.all(['data.bin', 'empty', 'a b#?.txt', 'absent'].map((file) => folder.exists(file)))).toEqual([
      true,
      true,
      true,
      false,
    ])
    expect(await folder.text('empty')).toBe('')
    expect(await folder.text('a b#?.txt')).toBe('odd')
    expect(await refusal(folder.open('absent'))).toEqual(formatError(/no file absent/))
  })

  test('takes a page for an absent file', async () => {
    expect(await fetchFolder(`${base}/page`).exists('chat_template.jinja')).toBe(false)
    expect(await refusal(fetchFolder(`${base}/page`).open('model.safetensors'))).toEqual(formatError(/no file model/))
  })

  test('refuses other bytes than it asked for, server errors and no answer at all', async () => {
    const source = await fetchFolder(`${base}/wrong`).open('data.bin')
    expect(await refusal(source.read(10, 5))).toEqual(formatError(/bytes 10-14 .*content-range bytes 11-15/))
    expect(await refusal(fetchFolder(`${base}/broken`).exists('data.bin'))).toEqual(formatError(/503/))
    const failing = fetchFolder('http://x', { fetch: async () => Promise.reject(new TypeError('offline')) })
    expect(await refusal(failing.open('data.bin'))).toEqual(formatError(/http:\/\/x\/data\.bin: offline/))
  })

  test('sends the given headers', async () => {
    log.length = 0
    await fetchFolder(`${base}/ranges`, { headers: { authorization: 'Bearer x' } }).exists('data.bin')
    expect(log).toEqual(['GET /ranges/data.bin bytes=0-0 Bearer x'])
  })

  test.each(HOSTILE)('refuses the name %j without a request', async (name) => {
    log.length = 0
    expect(await refusal(fetchFolder(base).open(name))).toEqual(formatError(/paths are refused/))
    expect(log).toEqual([])
  })
})
