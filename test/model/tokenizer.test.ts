// Tokenizers: the fixtures, a real model's against what reference implementations give, chat templates, and refusals.
import { describe, expect, test } from 'vitest'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { Tokenizer } from '../../runtime/model/tokenizer.ts'
import { byteIds, memoryFolder } from '../support/model-files.ts'
import { Random, seed } from '../support/random.ts'
import { smollm2Folder } from '../support/smollm2.ts'

const fixture = fileFolder(new URL('../fixtures/tiny-models/llama-gqa', import.meta.url).pathname)
const tokenizerJson = JSON.parse(await fixture.text('tokenizer.json'))

/** The fixture with other files or with parts of its tokenizer.json replaced. */
const load = (over: object, files: Record<string, string> = {}) =>
  Tokenizer.load(memoryFolder({ 'tokenizer.json': JSON.stringify({ ...tokenizerJson, ...over }), ...files }))

async function refusal(work: Promise<unknown>): Promise<RankmeshError> {
  return work.then(
    () => expect.fail('nothing was refused'),
    (e: RankmeshError) => e,
  )
}

const ids = (text: string) => byteIds(new TextEncoder().encode(text))

describe('a tokenizer of bytes', async () => {
  const tokenizer = await Tokenizer.load(fixture)

  test('encodes and decodes any text', () => {
    const at = seed()
    const random = new Random(at)
    for (let round = 0; round < 200; round++) {
      const code = () => random.int([0x80, 0x800, 0xd800, 0x3000][random.int(4)]!) + (random.int(8) ? 0 : 0x1f600)
      const text = String.fromCodePoint(...Array.from({ length: random.int(20) }, code))
      expect(tokenizer.encode(text), `seed ${at}: ${JSON.stringify(text)}`).toEqual(ids(text))
      expect(tokenizer.decode(ids(text)), `seed ${at}: ${JSON.stringify(text)}`).toBe(text)
    }
  })

  test('knows its vocabulary and special tokens', () => {
    expect(tokenizer).toMatchObject({ vocabSize: 320, bosId: 256, eosIds: [257], cleanUpSpaces: false })
    expect([...tokenizer.specialIds].sort()).toEqual([256, 257])
    expect([tokenizer.tokenToId('</s>'), tokenizer.tokenToId('nothing'), tokenizer.idToToken(256), tokenizer.idToToken(1000)]).toEqual([
      257,
      undefined,
      '<s>',
      undefined,
    ])
  })

  test('reads special tokens in a text as tokens or as plain text', () => {
    expect(tokenizer.encode('<s>a')).toEqual([256, ...ids('a')])
    expect(tokenizer.encode('<s>a', { parseSpecialTokens: false })).toEqual(ids('<s>a'))
    expect(tokenizer.encode('<extra_0>', { parseSpecialTokens: false })).toEqual([258])
    expect(tokenizer.decode([256, ...ids('a'), 257])).toBe('a')
    expect(tokenizer.decode([256, ...ids('a'), 257], { skipSpecialTokens: false })).toBe('<s>a</s>')
  })

  test('decodes nothing, and leaves out ids that have no token', () => {
    expect([
      tokenizer.decode([]),
      tokenizer.decode([256]),
      tokenizer.decode([...ids('a'), 5000, ...ids('b')]),
      tokenizer.decode(new Set(ids('a'))),
    ]).toEqual(['', '', 'ab', 'a'])
  })

  test('refuses what is no text or no id', () => {
    const badArgument = expect.objectContaining({ code: 'ERR_ARGUMENT' })
    expect(() => tokenizer.encode(undefined as unknown as string)).toThrow(badArgument)
    for (const id of [-1, 0.5, Number.NaN, '1' as unknown as number]) expect(() => tokenizer.decode([97, id])).toThrow(badArgument)
  })

  test('puts tokens around a text where the model expects them', async () => {
    const post_processor = {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [],
      special_tokens: { '<s>': { id: '<s>', ids: [256], tokens: ['<s>'] } },
    }
    const other = await load({ post_processor })
    expect(other.encode('a')).toEqual([256, ...ids('a')])
    expect(other.encode('')).toEqual([256])
    expect(other.encode('a', { addSpecialTokens: false })).toEqual(ids('a'))
  })

  test('cleans up spaces where the folder or the caller asks for it', async () => {
    const other = await load({}, { 'tokenizer_config.json': '{"clean_up_tokenization_spaces": true}' })
    const spaced = ids('Hi , you !')
    expect([other.decode(spaced), other.decode(spaced, { cleanUpSpaces: false })]).toEqual(['Hi, you!', 'Hi , you !'])
    expect([tokenizer.decode(spaced), tokenizer.decode(spaced, { cleanUpSpaces: true })]).toEqual(['Hi , you !', 'Hi, you!'])
  })

  test('takes what tokenizer_config.json names for special tokens', async () => {
    const config = { eos_token: { content: '<extra_3>' }, bos_token: null, additional_special_tokens: ['<extra_4>', 'absent'] }
    const other = await load({}, { 'tokenizer_config.json': JSON.stringify(config) })
    expect(other).toMatchObject({ bosId: null, eosIds: [261] })
    expect([...other.specialIds].sort()).toEqual([256, 257, 261, 262])
  })
})

describe('a tokenizer is refused', () => {
  const model = tokenizerJson.model
  test.each<[string, object, RegExp]>([
    ['without a model', { model: undefined }, /model\.type/],
    ['of another kind', { model: { ...model, type: 'Unigram' } }, /"BPE".*"Unigram"/],
    ['without a vocabulary', { model: { ...model, vocab: [] } }, /model\.vocab/],
    ['with a negative id', { model: { ...model, vocab: { a: -1 } } }, /"a".*-1/],
    ['with a huge id', { model: { ...model, vocab: { a: 4294967294 } } }, /"a".*4294967294/],
    ['with an id that is a text', { model: { ...model, vocab: { a: '1' } } }, /"a".*"1"/],
    ['with suffixes of words', { model: { ...model, end_of_word_suffix: '</w>' } }, /end_of_word_suffix/],
    ['with added tokens that are no list', { added_tokens: {} }, /added_tokens/],
    ['with an added token that is a text', { added_tokens: ['<s>'] }, /added_tokens/],
    ['with an added token without an id', { added_tokens: [{ content: '<s>' }] }, /"<s>"/],
    ['with an unknown pre-tokenizer', { pre_tokenizer: { type: 'Magic' } }, /Magic/],
    ['with a decoder that rewrites earlier text', { decoder: { type: 'CTC' } }, /CTC/],
    ['with a decoder that strips the end', { decoder: { type: 'Strip', content: ' ', start: 0, stop: 1 } }, /Strip/],
    ['without a normalizer entry', { normalizer: undefined }, /normalizer/],
  ])('%s', async (_, over, message) => {
    expect(await refusal(load(over))).toMatchObject({ code: 'ERR_MODEL_FORMAT', message: expect.stringMatching(message) })
  })

  test('that is no JSON, no object or absent', async () => {
    for (const files of [{ 'tokenizer.json': '{' }, { 'tokenizer.json': '[]' }, {}] as Record<string, string>[]) {
      expect(await refusal(Tokenizer.load(memoryFolder(files)))).toMatchObject({
        code: 'ERR_MODEL_FORMAT',
        message: expect.stringContaining('tokenizer.json'),
      })
    }
  })

  test('but not for a token called __proto__', async () => {
    const text = JSON.stringify(tokenizerJson).replace('"vocab":{', '"vocab":{"__proto__":320,')
    const tokenizer = await Tokenizer.load(memoryFolder({ 'tokenizer.json': text }))
    expect([tokenizer.tokenToId('__proto__'), tokenizer.decode([320])]).toEqual([320, '__proto__'])
  })
})

describe('chat templates', () => {
  const template =
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
  const config = (over: object) => ({
    'tokenizer_config.json': JSON.stringify({ bos_token: '<s>', eos_token: { content: '</s>' }, ...over }),
  })
  const messages = [{ role: 'user', content: ' Hi ' }]

  test('of each place are found', async () => {
    const places = [
      config({ chat_template: template }),
      config({
        chat_template: [
          { name: 'tool_use', template: 'x' },
          { name: 'default', template },
        ],
      }),
      { ...config({ chat_template: 'overruled' }), 'chat_template.jinja': template },
    ]
    for (const files of places) expect((await load({}, files)).applyChatTemplate(messages)).toBe('<s>[user] Hi</s>[assistant]')
  })

  test('give ids with their own special tokens and no others', async () => {
    const tokenizer = await load({}, config({ chat_template: template }))
    expect(tokenizer.encodeChat(messages, { addGenerationPrompt: false })).toEqual([256, ...tokenizer.encode('[user] Hi'), 257])
  })

  test('that are missing or damaged are refused', async () => {
    const without = load({}).then((tokenizer) => tokenizer.applyChatTemplate(messages))
    expect(await refusal(without)).toMatchObject({ code: 'ERR_MODEL_FORMAT', message: expect.stringContaining('no chat template') })
    for (const chat_template of [1, { a: 'b' }, '{% if %}', '{% for x in %}']) {
      expect(await refusal(load({}, config({ chat_template })))).toMatchObject({ code: 'ERR_MODEL_FORMAT' })
    }
  })

  test('may refuse messages, and are given none that are malformed', async () => {
    const strict = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}ok"
    const tokenizer = await load({}, config({ chat_template: strict }))
    expect(tokenizer.applyChatTemplate([{ role: 'system', content: 'x' }])).toBe('ok')
    expect(() => tokenizer.applyChatTemplate(messages)).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT', message: expect.stringContaining('system first') }),
    )
    for (const bad of [[], null, [null], ['x'], [{ role: 'user' }], [{ content: 'x' }]]) {
      expect(() => tokenizer.applyChatTemplate(bad as never)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
    }
  })
})

const smollm2 = await smollm2Folder()

describe.skipIf(!smollm2)('SmolLM2', async () => {
  const tokenizer = smollm2 ? await Tokenizer.load(fileFolder(smollm2.dir)) : (null as never)
  const expected = smollm2?.expected

  test.each(expected?.tokenizer ?? [])('tokenizes $text as the reference does', ({ text, ids, special }) => {
    expect(tokenizer.encode(text, { parseSpecialTokens: false })).toEqual(ids)
    expect(tokenizer.encode(text)).toEqual(special)
    expect(tokenizer.decode(special, { skipSpecialTokens: false })).toBe(text)
  })

  // Given by the reference implementation in Rust. Numbers other than decimal digits and U+0085, U+FEFF are where JavaScript differs.
  test.each<[string, number[]]>([
    ['x ①²Ⅷ y', [104, 216, 173, 235, 250, 19133, 173, 223, 117, 329]],
    ['Ⅳ. Ⅷ', [173, 223, 113, 30, 216, 173, 223, 117]],
    ['1½ cups, 2² = 4', [33, 16738, 12382, 28, 216, 34, 19133, 446, 216, 36]],
    ['٣٤ ५६', [164, 113, 164, 114, 216, 9310, 121, 9310, 122]],
    ['a  \ufeff  b', [81, 216, 216, 186, 136, 140, 216, 278]],
    ['a \u0085 b', [81, 3351, 223, 278]],
  ])('splits %j at every Unicode number and by Unicode white space', (text, ids) => {
    expect(tokenizer.encode(text)).toEqual(ids)
  })

  test('decodes generated ids to the expected text', () => {
    for (const { ids, text } of expected!.greedy) expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe(text)
  })

  test('makes the prompts of its chat template', () => {
    const chat = (name: string) => expected!.greedy.find((run) => run.name === name)!
    const france = [{ role: 'user', content: 'What is the capital of France?' }]
    expect(tokenizer.applyChatTemplate(france)).toBe(chat('chat-france').prompt)
    expect(tokenizer.encodeChat(france)).toEqual(chat('chat-france').promptIds)
    const sky = [
      { role: 'system', content: 'You answer in one short sentence.' },
      { role: 'user', content: 'Why is the sky blue?' },
    ]
    expect(tokenizer.encodeChat(sky)).toEqual(chat('chat-system').promptIds)
    for (const run of expected!.greedy) expect(tokenizer.encode(run.prompt)).toEqual(run.promptIds)
  })

  test('knows its special tokens', () => {
    expect(tokenizer).toMatchObject({ vocabSize: 49152, bosId: 1, eosIds: [2] })
    expect(tokenizer.specialIds.has(0) && tokenizer.specialIds.has(2)).toBe(true)
  })
})
