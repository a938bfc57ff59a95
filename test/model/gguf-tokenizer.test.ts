// Tokenizers in GGUF metadata: byte pairs and scored pieces against independent programs, special tokens, templates, refusals.
import { describe, expect, test } from 'vitest'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { Tokenizer } from '../../runtime/model/tokenizer.ts'
import { floats } from '../support/gguf-files.ts'
import { LLAMA, type Metadata, modelFile, tensorsOf } from '../support/gguf-models.ts'
import { memoryFolder } from '../support/model-files.ts'
import { Random, seed } from '../support/random.ts'
import { smollm2Gguf } from '../support/smollm2.ts'

const embedding = floats('token_embd.weight', [64, 1024], new Float32Array(64 * 1024))
const tensors = tensorsOf(new Random(1), { [embedding.name]: embedding })
const load = (over: Metadata) => Tokenizer.load(memoryFolder({ 'model.gguf': modelFile({ ...LLAMA, ...over }, tensors) }))

async function refusal(over: Metadata): Promise<string> {
  return load(over).then(
    () => expect.fail('nothing was refused'),
    (error: RankmeshError) => {
      expect(error.code, String(error.stack)).toBe('ERR_MODEL_FORMAT')
      return error.message
    },
  )
}

/** The 256 characters that stand for bytes in byte-level vocabularies, by byte. */
const BYTES = (() => {
  const printable = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173)
  let next = 256
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++))
})()
const spelled = (text: string) => [...Buffer.from(text)].map((byte) => BYTES[byte]).join('')

/** A vocabulary of all bytes, then what the merges make, then control tokens. */
function byteLevel(pre: string, merged: string[], over: Metadata = {}): Metadata {
  const pairs = merged.map((token) => spelled(token))
  const tokens = [...BYTES, ...pairs, '<s>', '</s>', '<tool>']
  return {
    'tokenizer.ggml.pre': [8, pre],
    'tokenizer.ggml.tokens': [9, [8, tokens]],
    'tokenizer.ggml.token_type': [9, [5, tokens.map((_, id) => (id < tokens.length - 3 ? 1 : id < tokens.length - 1 ? 3 : 4))]],
    'tokenizer.ggml.merges': [9, [8, pairs.map((token) => `${token.slice(0, -1)} ${token.slice(-1)}`)]],
    'tokenizer.ggml.bos_token_id': [4, tokens.length - 3],
    'tokenizer.ggml.eos_token_id': [4, tokens.length - 2],
    ...over,
  }
}

describe('byte pairs', () => {
  test('special and user-defined tokens, start and end, text and back', async () => {
    const tokenizer = await load(byteLevel('gpt-2', [' t', ' th']))
    const [bos, eos, tool] = [258, 259, 260]
    expect(tokenizer.encode('a th')).toEqual([97, 257])
    expect(tokenizer.encode('<s><tool></s>')).toEqual([bos, tool, eos])
    expect(tokenizer.encode('<s>', { parseSpecialTokens: false })).toHaveLength(3)
    expect(tokenizer.decode([bos, tool, 257, eos])).toBe('<tool> th')
    expect([tokenizer.bosId, tokenizer.eosIds, tokenizer.vocabSize]).toEqual([bos, [eos], 261])
    const text = "Grüße, 你好 — ²½ \u0085\n\t𝒳 it's 12345"
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text)
    const both = await load(
      byteLevel('gpt-2', [], { 'tokenizer.ggml.add_bos_token': [7, true], 'tokenizer.ggml.add_eos_token': [7, true] }),
    )
    expect(both.encode('a')).toEqual([256, 97, 257])
    expect(both.encode('a', { addSpecialTokens: false })).toHaveLength(1)
  })

  // Digits show how a text is cut: all merges of digits are there, so that each word of them becomes one token.
  const digits = ['12', '123', '1234', '12345', '  ', ' a', '\n\n']
  test.each([
    ['gpt-2', '12345', ['12345']],
    ['smollm', '12345', ['1', '2', '3', '4', '5']],
    ['llama-bpe', '12345', ['123', '4', '5']],
    ['qwen2', '12345', ['1', '2', '3', '4', '5']],
    ['gpt-2', '   a', ['  ', ' a']],
    ['llama-bpe', '   a', ['  ', ' a']],
    ['llama-bpe', '.\n\n', ['.', '\n\n']],
  ])('%s cuts %j', async (pre, text, pieces) => {
    const tokenizer = await load(byteLevel(pre, digits))
    const ids = tokenizer.encode(text, { addSpecialTokens: false })
    expect(ids.map((id) => tokenizer.decode([id]))).toEqual(pieces)
  })

  test('a llama 3 starts texts with its start token and takes whole words', async () => {
    const tokenizer = await load(byteLevel('llama-bpe', ['ab'], { 'tokenizer.ggml.merges': [9, [8, []]] }))
    expect(tokenizer.encode('ab')).toEqual([257, 256])
    expect((await load(byteLevel('llama-bpe', [], { 'tokenizer.ggml.add_bos_token': [7, false] }))).encode('a')).toHaveLength(1)
  })

  test('the chat template is the file’s', async () => {
    const template = "{% for m in messages %}{{ bos_token }}{{ m['content'] }}{% endfor %}"
    const tokenizer = await load(byteLevel('gpt-2', [], { 'tokenizer.chat_template': [8, template] }))
    expect(tokenizer.encodeChat([{ role: 'user', content: 'a' }])).toEqual([256, 97])
    expect(() => (tokenizer as Tokenizer).applyChatTemplate([])).toThrow()
  })
})

const SPACE = '\u2581'

/** SentencePiece as it is described: the best-scored pair of neighbours is joined, the left one of equals, until none makes a piece. */
function piecesOf(text: string, ids: Map<string, number>, scores: number[]): number[] {
  const symbols = [...(SPACE + text.replaceAll(' ', SPACE))]
  for (;;) {
    let best = -1
    let bestScore = Number.NEGATIVE_INFINITY
    for (let i = 0; i + 1 < symbols.length; i++) {
      const id = ids.get(`${symbols[i]}${symbols[i + 1]}`)
      if (id !== undefined && (scores[id] as number) > bestScore) [best, bestScore] = [i, scores[id] as number]
    }
    if (best < 0) break
    symbols.splice(best, 2, `${symbols[best]}${symbols[best + 1]}`)
  }
  return symbols.flatMap((symbol) => {
    const id = ids.get(symbol)
    return id === undefined ? [...Buffer.from(symbol)].map((byte) => 3 + byte) : [id]
  })
}

/** Whether a piece ends as it begins: then pieces of equal score may overlap, and the order of merges matters. */
const hasBorder = (piece: string) =>
  Array.from({ length: piece.length - 1 }, (_, i) => piece.slice(0, i + 1)).some((part) => piece.endsWith(part))

describe('scored pieces', () => {
  const at = seed()
  const random = new Random(at)
  const alphabet = ['a', 'b', 'c', 'd', 'é', '你', '𝒳', SPACE]
  const drawn = Array.from({ length: 400 }, () => Array.from({ length: 2 + random.int(4) }, () => alphabet[random.int(8)]).join(''))
  const pieces = [...new Set([...alphabet, ...drawn.filter((piece) => !hasBorder(piece))])]
  const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`)
  const tokens = ['<unk>', '<s>', '</s>', ...bytes, ...pieces]
  const scores = tokens.map((_, id) => (id < 259 ? 0 : -random.int(1 << 20) / 64))
  const metadata: Metadata = {
    'tokenizer.ggml.model': [8, 'llama'],
    'tokenizer.ggml.pre': undefined,
    'tokenizer.ggml.merges': undefined,
    'tokenizer.ggml.tokens': [9, [8, tokens]],
    'tokenizer.ggml.scores': [9, [6, scores]],
    'tokenizer.ggml.token_type': [9, [5, tokens.map((_, id) => (id === 0 ? 2 : id < 3 ? 3 : id < 259 ? 6 : 1))]],
    'tokenizer.ggml.bos_token_id': [4, 1],
    'tokenizer.ggml.eos_token_id': [4, 2],
  }

  test('are joined as SentencePiece joins them, and give the text back', async () => {
    const tokenizer = await load(metadata)
    const ids = new Map(pieces.map((piece, i) => [piece, 259 + i]))
    for (let round = 0; round < 200; round++) {
      const text = Array.from({ length: 1 + random.int(30) }, () => [...alphabet.slice(0, 7), ' ', 'x', 'ß'][random.int(10)]).join('')
      const label = `seed ${at}, round ${round}: ${JSON.stringify(text)}`
      const got = tokenizer.encode(text)
      expect(got, label).toEqual([1, ...piecesOf(text, ids, scores)])
      expect(tokenizer.decode(got), label).toBe(text)
    }
  })

  test('without a space before the text where the file says so', async () => {
    const tokenizer = await load({ ...metadata, 'tokenizer.ggml.add_space_prefix': [7, false], 'tokenizer.ggml.add_bos_token': [7, false] })
    const [a] = tokenizer.encode('a')
    expect(tokenizer.idToToken(a as number)).toBe('a')
    expect(tokenizer.decode(tokenizer.encode(' a'))).toBe(' a')
  })

  test('of absurd length, without scores, or with settings that are not read are refused', async () => {
    const long: Metadata = {
      'tokenizer.ggml.tokens': [9, [8, ['<unk>', 'a', 'a'.repeat(1000)]]],
      'tokenizer.ggml.scores': [9, [6, [0, 0, 0]]],
      'tokenizer.ggml.token_type': [9, [5, [2, 1, 1]]],
    }
    expect(await refusal({ ...metadata, ...long, 'tokenizer.ggml.eos_token_id': undefined })).toMatch(/at most 256 characters/)
    expect(await refusal({ ...metadata, 'tokenizer.ggml.scores': undefined })).toMatch(/tokenizer.ggml.scores/)
    expect(await refusal({ ...metadata, 'tokenizer.ggml.scores': [9, [6, [1]]] })).toMatch(/tokenizer.ggml.scores/)
    expect(await refusal({ ...metadata, 'tokenizer.ggml.remove_extra_whitespaces': [7, true] })).toMatch(/remove_extra_whitespaces/)
  })
})

describe('refused', () => {
  const cases: [string, Metadata, RegExp][] = [
    ['another kind', { 'tokenizer.ggml.model': [8, 'bert'] }, /"bert".*gpt2/],
    ['no kind', { 'tokenizer.ggml.model': undefined }, /null/],
    ['another way to cut words', { 'tokenizer.ggml.pre': [8, 'toString'] }, /"toString".*gpt-2, smollm/],
    ['no tokens', { 'tokenizer.ggml.tokens': undefined }, /tokenizer.ggml.tokens/],
    ['tokens that are numbers', { 'tokenizer.ggml.tokens': [9, [4, [1, 2]]] }, /a list of texts for tokenizer.ggml.tokens/],
    ['a token given twice', { 'tokenizer.ggml.tokens': [9, [8, ['a', 'b', 'ab', '<s>', 'a']]] }, /token "a" twice/],
    ['too few types', { 'tokenizer.ggml.token_type': [9, [5, [1]]] }, /5 numbers for tokenizer.ggml.token_type/],
    ['no merges', { 'tokenizer.ggml.merges': undefined }, /tokenizer.ggml.merges/],
    ['an id outside', { 'tokenizer.ggml.padding_token_id': [4, 5] }, /below 5 for tokenizer.ggml.padding_token_id/],
    ['a flag that is a number', { 'tokenizer.ggml.add_bos_token': [4, 1] }, /true or false/],
    ['a template that is a number', { 'tokenizer.chat_template': [4, 1] }, /a text for tokenizer.chat_template/],
    ['a template that does not parse', { 'tokenizer.chat_template': [8, '{% if %'] }, /does not parse/],
  ]
  test.each(cases)('%s', async (_, over, message) => {
    expect(await refusal(over)).toMatch(message)
  })
})

const smollm2 = await smollm2Gguf()
describe.skipIf(!smollm2)('SmolLM2 (skipped where its file is not there)', () => {
  test('gives the expected ids of awkward texts', async () => {
    if (!smollm2) return
    const tokenizer = await Tokenizer.load(fileFolder(smollm2.file))
    for (const { text, ids, special } of smollm2.expected.tokenizer) {
      expect(tokenizer.encode(text), text).toEqual(special)
      expect(tokenizer.encode(text, { parseSpecialTokens: false }), text).toEqual(ids)
    }
    expect(smollm2.expected.tokenizer.length).toBeGreaterThan(10)
  })
})
