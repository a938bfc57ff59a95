// The tokenizer in a GGUF file's metadata, as the tokenizer.json and tokenizer_config.json that would say the same.
import { describe, ModelFormatError } from '../core/errors.ts'
import type { GgufHeader, GgufValue } from './gguf-file.ts'
import { mergesOf, SPACE } from './gguf-merges.ts'
import { type JsonObject, show } from './json.ts'

/** What kinds of tokens there are, by the numbers of the format. */
const NORMAL = 1
const UNKNOWN = 2
const CONTROL = 3
const USER_DEFINED = 4

const CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
const words = (numbers: string) =>
  `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${numbers}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`

interface Split {
  steps: object[]
  /** A word that is a token is taken whole. */
  ignoreMerges?: boolean
  /** Texts begin with the start token unless the file says otherwise. */
  addsBos?: boolean
  normalizer?: object
}

const byteLevel = (use_regex: boolean): object => ({ type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex })
const pattern = (regex: string): object => ({ type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false })

const GPT2: Split = { steps: [byteLevel(true)] }
const DIGITS: Split = { steps: [{ type: 'Digits', individual_digits: true }, byteLevel(true)] }
const LLAMA3: Split = { steps: [pattern(words('\\p{N}{1,3}')), byteLevel(false)], ignoreMerges: true, addsBos: true }
const QWEN2: Split = { steps: [pattern(words('\\p{N}')), byteLevel(false)], normalizer: { type: 'NFC' } }

/** How text is cut into words before pairs are merged, by `tokenizer.ggml.pre`. */
const SPLITS: Readonly<Record<string, Split>> = {
  'gpt-2': GPT2,
  smollm: DIGITS,
  starcoder: DIGITS,
  refact: DIGITS,
  'llama-bpe': LLAMA3,
  llama3: LLAMA3,
  'llama-v3': LLAMA3,
  qwen2: QWEN2,
  'deepseek-r1-qwen': { steps: QWEN2.steps },
}

export interface GgufTokenizer {
  json: JsonObject
  config: JsonObject
  template: string | null
}

/** Throws ERR_MODEL_FORMAT where the tokenizer is damaged or of a kind that is not read. */
export function ggufTokenizer(header: GgufHeader): GgufTokenizer {
  const read = new Reader(header)
  const kind = read.text('ggml.model')
  if (kind !== 'gpt2' && kind !== 'llama') {
    throw new ModelFormatError(
      `Tokenizers of the kind ${show(kind)} (tokenizer.ggml.model) are not read; ${header.file} would need "gpt2" or "llama"`,
    )
  }
  const tokens = read.tokens()
  const types = read.types(tokens.length)
  const config: JsonObject = {}
  for (const [name, key] of Object.entries({ bos: 'bos', eos: 'eos', unk: 'unknown', pad: 'padding' })) {
    const id = read.id(`ggml.${key}_token_id`, tokens.length)
    if (id !== null) config[`${name}_token`] = tokens[id]
  }
  const added = tokens
    .map((content, id) => ({ id, content, type: types[id] ?? NORMAL }))
    .filter(({ type }) => type === UNKNOWN || type === CONTROL || type === USER_DEFINED)
    .map(({ id, content, type }) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: type !== USER_DEFINED,
    }))
  const parts = kind === 'gpt2' ? bytePairs(read, tokens) : pieces(read, tokens, types)
  const { addsBos, ...rest } = parts
  const start = read.flag('ggml.add_bos_token', addsBos) ? read.id('ggml.bos_token_id', tokens.length) : null
  const end = read.flag('ggml.add_eos_token', false) ? read.id('ggml.eos_token_id', tokens.length) : null
  const json = { version: '1.0', truncation: null, padding: null, added_tokens: added, post_processor: around(tokens, start, end), ...rest }
  return { json, config, template: read.text('chat_template') }
}

interface Parts {
  normalizer: object | null
  pre_tokenizer: object | null
  decoder: object
  model: object
  addsBos: boolean
}

/** Byte-level pairs, as of GPT-2 and after. */
function bytePairs(read: Reader, tokens: readonly string[]): Parts {
  const pre = read.text('ggml.pre')
  const split = pre !== null && Object.hasOwn(SPLITS, pre) ? (SPLITS[pre] as Split) : null
  if (!split) {
    throw new ModelFormatError(
      `Texts cut into words in the way ${show(pre)} (tokenizer.ggml.pre) are not read; ${read.file} would need one of ${Object.keys(SPLITS).join(', ')}`,
    )
  }
  const { steps, ignoreMerges = false, addsBos = false, normalizer = null } = split
  const merges = read.strings('ggml.merges')
  if (!merges) throw read.bad('ggml.merges', 'a list of pairs', undefined)
  return {
    normalizer,
    pre_tokenizer: { type: 'Sequence', pretokenizers: steps },
    decoder: byteLevel(true),
    model: model(tokens, [...merges], { byte_fallback: false, ignore_merges: ignoreMerges, unk_token: null, fuse_unk: false }),
    addsBos,
  }
}

/** Pieces with scores, as of SentencePiece: the best-scored neighbours are merged first, unknown characters become their bytes. */
function pieces(read: Reader, tokens: readonly string[], types: ArrayLike<number>): Parts {
  const scores = read.numbers('ggml.scores', tokens.length)
  if (!scores) throw read.bad('ggml.scores', `${tokens.length} numbers`, undefined)
  if (read.flag('ggml.remove_extra_whitespaces', false)) {
    throw new ModelFormatError(`tokenizer.ggml.remove_extra_whitespaces of ${read.file} is not read; expected false`)
  }
  const unknown = read.id('ggml.unknown_token_id', tokens.length) ?? 0
  const prefix = read.flag('ggml.add_space_prefix', true)
  const toSpace = { type: 'Replace', pattern: { String: SPACE }, content: ' ' }
  const fromSpace = { type: 'Replace', pattern: { String: ' ' }, content: SPACE }
  const normal = tokens.map((_, id) => (types[id] ?? NORMAL) === NORMAL)
  return {
    normalizer: { type: 'Sequence', normalizers: [...(prefix ? [{ type: 'Prepend', prepend: SPACE }] : []), fromSpace] },
    pre_tokenizer: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        toSpace,
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: model(tokens, mergesOf(tokens, scores, normal), {
      byte_fallback: true,
      ignore_merges: false,
      unk_token: tokens[unknown] as string,
      fuse_unk: true,
    }),
    addsBos: true,
  }
}

interface ModelSettings {
  byte_fallback: boolean
  ignore_merges: boolean
  unk_token: string | null
  fuse_unk: boolean
}

function model(tokens: readonly string[], merges: readonly (string | [string, string])[], settings: ModelSettings): object {
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]))
  return { type: 'BPE', dropout: null, continuing_subword_prefix: null, end_of_word_suffix: null, ...settings, vocab, merges }
}

/** The post-processor that puts these tokens around a text; null where there are none. */
function around(tokens: readonly string[], start: number | null, end: number | null): object | null {
  const ids = [start, end].filter((id) => id !== null)
  if (ids.length === 0) return null
  const special = (id: number | null) => (id === null ? [] : [{ SpecialToken: { id: tokens[id], type_id: 0 } }])
  const text = (id: 'A' | 'B') => [...special(start), { Sequence: { id, type_id: 0 } }, ...special(end)]
  return {
    type: 'TemplateProcessing',
    single: text('A'),
    pair: [...text('A'), ...text('B')],
    special_tokens: Object.fromEntries(ids.map((id) => [tokens[id], { id: tokens[id], ids: [id], tokens: [tokens[id]] }])),
  }
}

/** Checked reads of the `tokenizer.` keys. */
class Reader {
  readonly file: string
  readonly #metadata: ReadonlyMap<string, GgufValue>

  constructor({ file, metadata }: GgufHeader) {
    this.file = file
    this.#metadata = metadata
  }

  text(key: string): string | null {
    const value = this.#get(key)
    if (value !== undefined && typeof value !== 'string') throw this.bad(key, 'a text', value)
    return value ?? null
  }

  flag(key: string, fallback: boolean): boolean {
    const value = this.#get(key) ?? fallback
    if (typeof value !== 'boolean') throw this.bad(key, 'true or false', value)
    return value
  }

  /** A token id below `count`; null where the key is absent. */
  id(key: string, count: number): number | null {
    const value = this.#get(key)
    if (value === undefined) return null
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value >= count)
      throw this.bad(key, `a token id below ${count}`, value)
    return value
  }

  strings(key: string): readonly string[] | null {
    const value = this.#get(key)
    if (value === undefined) return null
    // An empty list may be of any type.
    if (typeof value !== 'object' || (value.length > 0 && !Array.isArray(value))) throw this.bad(key, 'a list of texts', value)
    return value.length === 0 ? [] : (value as readonly string[])
  }

  numbers(key: string, count: number): ArrayLike<number> | null {
    const value = this.#get(key)
    if (value === undefined) return null
    if (typeof value !== 'object' || Array.isArray(value) || value.length !== count) throw this.bad(key, `${count} numbers`, value)
    return value as ArrayLike<number>
  }

  tokens(): readonly string[] {
    const tokens = this.strings('ggml.tokens')
    if (!tokens || tokens.length === 0) throw this.bad('ggml.tokens', 'a list of at least one text', tokens ?? undefined)
    const seen = new Set<string>()
    for (const token of tokens) {
      if (seen.has(token)) throw new ModelFormatError(`${this.file} has the token ${show(token)} twice; which one is meant cannot be told`)
      seen.add(token)
    }
    return tokens
  }

  types(count: number): ArrayLike<number> {
    return this.numbers('ggml.token_type', count) ?? []
  }

  bad(key: string, expected: string, given: unknown): ModelFormatError {
    return new ModelFormatError(`Expected ${expected} for tokenizer.${key} of ${this.file} but received ${describe(given)}`)
  }

  #get(key: string): GgufValue | undefined {
    return this.#metadata.get(`tokenizer.${key}`)
  }
}
