// Streamed text: the pieces put together are the whole text, no piece is taken back, and a token costs the same late as early.
import { describe, expect, test } from 'vitest'
import { cleanUp, heldFrom } from '../../runtime/model/clean-up.ts'
import { StreamDetokenizer } from '../../runtime/model/detokenizer.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { Tokenizer } from '../../runtime/model/tokenizer.ts'
import { byteIds, memoryFolder } from '../support/model-files.ts'
import { Random, seed } from '../support/random.ts'

/** One token per byte; 256 and 257 are special, 258 on are added words. */
const bytes = await Tokenizer.load(fileFolder(new URL('../fixtures/tiny-models/llama-gqa', import.meta.url).pathname))

const PIECES = ['▁', '▁▁', '▁Hello', 'lo', '▁the', '.', ',', '?', "'", '▁n', 't', "'s", 's', '▁v', 'e', '▁r', 'é', '▁😀', '\ufffd', 'x']

/** A tokenizer of the SentencePiece kind: spaces as ▁, single bytes as <0x..>, the first space of a text dropped; and one that cleans up. */
async function sentencePiece(clean_up_tokenization_spaces: boolean): Promise<Tokenizer> {
  const tokens = [
    '<unk>',
    '<s>',
    '</s>',
    ...Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`),
    ...PIECES,
  ]
  const json = {
    added_tokens: tokens.slice(0, 3).map((content, id) => ({ id, content, special: true })),
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      type: 'BPE',
      unk_token: '<unk>',
      fuse_unk: true,
      byte_fallback: true,
      vocab: Object.fromEntries(tokens.map((t, i) => [t, i])),
      merges: [],
    },
  }
  const config = { bos_token: '<s>', eos_token: '</s>', clean_up_tokenization_spaces }
  return Tokenizer.load(memoryFolder({ 'tokenizer.json': JSON.stringify(json), 'tokenizer_config.json': JSON.stringify(config) }))
}

const pieces = await sentencePiece(false)
const cleaning = await sentencePiece(true)

function stream(tokenizer: Tokenizer, ids: readonly number[], skipSpecialTokens = true): string[] {
  const detokenizer = new StreamDetokenizer(tokenizer, { skipSpecialTokens })
  return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()]
}

const utf8 = (text: string) => [...new TextEncoder().encode(text)]
const ids = (text: string) => byteIds(utf8(text))

describe('pieces', () => {
  test('of ASCII come at once', () => {
    expect(stream(bytes, ids('Hi!'))).toEqual(['H', 'i', '!', ''])
  })

  test('of characters spread over tokens come whole', () => {
    expect(stream(bytes, ids('é€😀'))).toEqual(['', 'é', '', '', '€', '', '', '', '😀', ''])
    const family = '👩‍👧'
    expect(stream(bytes, ids(family)).filter(Boolean)).toEqual([...family])
  })

  test('of characters that stay unfinished come when that is certain', () => {
    expect(stream(bytes, byteIds([0xf0, 0x9f, 0x41]))).toEqual(['', '', '\ufffdA', ''])
    expect(stream(bytes, byteIds([0xf0, 0x9f]))).toEqual(['', '', '\ufffd'])
    expect(stream(bytes, byteIds([0xe2, 0xe2, 0xe2]))).toEqual(['', '\ufffd', '\ufffd', '\ufffd'])
  })

  test('leave out special tokens, also inside a character', () => {
    expect(stream(bytes, [256, ...ids('a'), ...byteIds([0xc3]), 257, ...byteIds([0xa9]), 257])).toEqual(['', 'a', '', '', 'é', '', ''])
    expect(stream(bytes, [256, ...ids('a'), 257], false)).toEqual(['<s>', 'a', '</s>', ''])
  })

  test('leave out ids without a token', () => {
    expect(stream(bytes, [...ids('a'), 100_000, ...ids('b')])).toEqual(['a', '', 'b', ''])
  })

  test('keep the spaces between words but not the first', () => {
    const ids = ['▁Hello', '▁the', '▁', '▁the'].map((token) => pieces.tokenToId(token)!)
    expect(stream(pieces, ids)).toEqual(['Hello', ' the', ' ', ' the', ''])
  })

  test('wait for what could remove a space', () => {
    const ids = ['▁Hello', '▁', '.', '▁the', '▁n', "'", 't', '▁', 'x'].map((token) => cleaning.tokenToId(token)!)
    expect(stream(cleaning, ids)).toEqual(['Hello', '', '.', ' the', '', '', "n't", '', ' x', ''])
  })

  test('are none for an empty text, and a flushed stream starts anew', () => {
    const detokenizer = new StreamDetokenizer(pieces)
    expect(detokenizer.flush()).toBe('')
    for (let i = 0; i < 2; i++) {
      expect(detokenizer.push(pieces.tokenToId('▁the')!) + detokenizer.push(3 + 0xe2)).toBe('the')
      expect(detokenizer.flush()).toBe('\ufffd')
    }
  })

  test('refuse what is no id', () => {
    expect(() => new StreamDetokenizer(bytes).push(-1)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
    expect(() => new StreamDetokenizer(bytes).push(1.5)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
  })
})

describe('put together', () => {
  const texts = ['日本語のテキスト', '😀👩‍👩‍👧‍👦🇫🇷', "naïve café isn't ' here ' .", '\ufeffa\ufeffb', '\ufffd\ufffdx', '  two   spaces  ']
  const fromText = (random: Random) => utf8(texts[random.int(texts.length)]!).filter(() => random.int(12) > 0)
  const sources: [string, Tokenizer, (random: Random) => number[]][] = [
    ['bytes of text, some lost', bytes, (random) => byteIds(fromText(random))],
    ['any bytes and words', bytes, (random) => Array.from({ length: 6 }, () => random.int(320))],
    [
      'bytes that begin characters',
      bytes,
      (random) => Array.from({ length: 6 }, () => byteIds([0xf0, 0x9f, 0xe2, 0x82, 0xef, 0xbf, 0xbd, 0xc3])[random.int(8)]!),
    ],
    ['pieces and byte tokens', pieces, (random) => (random.int(2) ? fromText(random).map((b) => b + 3) : [random.int(pieces.vocabSize)])],
    [
      'pieces and byte tokens, cleaned up',
      cleaning,
      (random) => (random.int(8) ? [259 + random.int(PIECES.length)] : fromText(random).map((b) => b + 3)),
    ],
  ]
  test.each(sources)('random ids give decode of them all: %s', (_, tokenizer, next) => {
    const at = seed()
    const random = new Random(at)
    for (let round = 0; round < 400; round++) {
      const ids: number[] = []
      while (ids.length < 60) ids.push(...next(random))
      const skip = random.int(2) === 0
      const label = `seed ${at}, round ${round}`
      expect(stream(tokenizer, ids, skip).join(''), label).toBe(tokenizer.decode(ids, { skipSpecialTokens: skip }))
      expect(stream(tokenizer, ids, skip).slice(0, -1).join('').length, label).toBeGreaterThan(0)
    }
  })
})

test('a token decodes a bounded number of tokens, however long the text', () => {
  for (const cycle of [ids('plain text '), ids('€😀'), byteIds([0xe2]), byteIds([0xf0, 0x9f]), [256], byteIds([0xef, 0xbf, 0xbd])]) {
    let decoded = 0
    const counting = Object.create(bytes, {
      decode: {
        value: (ids: number[], options: object) => {
          decoded += ids.length
          return bytes.decode(ids, options)
        },
      },
      isShown: { value: (id: number, skip: boolean) => bytes.isShown(id, skip) },
    }) as Tokenizer
    const detokenizer = new StreamDetokenizer(counting)
    for (let i = 0; i < 3000; i++) detokenizer.push(cycle[i % cycle.length]!)
    expect(decoded / 3000, String(cycle)).toBeLessThan(60)
  }
})

describe('clean-up', () => {
  test('removes the spaces before punctuation and contractions', () => {
    expect(cleanUp("Is n't it ? I 'm sure , he 's . We 've ' and ' you 're !")).toBe("Isn't it? I'm sure, he's. We've'and'you're!")
  })

  test('holds back no more than could change', () => {
    expect(['for', "nor'", 'is', 'is ', 'is n', "is n'", 'is  ', ' v r', ''].map(heldFrom)).toEqual([3, 4, 2, 2, 2, 2, 2, 0, 0])
  })

  test('of two parts cut where allowed is that of the whole, for all short texts of the characters that matter', () => {
    const alphabet = " 'nvretm.x"
    const random = new Random(3)
    for (let round = 0; round < 200_000; round++) {
      const text = Array.from({ length: 1 + random.int(9) }, () => alphabet[random.int(alphabet.length)]).join('')
      const at = heldFrom(text.slice(0, random.int(text.length + 1)))
      if (cleanUp(text.slice(0, at)) + cleanUp(text.slice(at)) !== cleanUp(text)) expect.fail(JSON.stringify([text, at]))
    }
  })
})
