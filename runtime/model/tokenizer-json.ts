// Checks of a tokenizer.json before the library reads it, and the special tokens that it and tokenizer_config.json name.
import { ModelFormatError } from '../core/errors.ts'
import { isObject, type JsonObject, own, show } from './json.ts'

export interface SpecialTokens {
  /** bos_token, eos_token, ... to the token, as far as tokenizer_config.json names them. */
  readonly named: Readonly<Record<string, string>>
  readonly ids: ReadonlySet<number>
}

const NAMES = ['bos_token', 'eos_token', 'unk_token', 'pad_token', 'sep_token', 'cls_token', 'mask_token']
const MAX_TOKEN_ID = 1 << 24

/** Decoders whose output for a text grows as tokens are added, by their steps; others are refused. */
const DECODERS = /^(ByteLevel |Metaspace |null |(Replace )*(ByteFallback )?(Fuse )?(Strip )?)$/

/** Throws ERR_MODEL_FORMAT unless `json` is a byte-pair tokenizer with sane ids; `file` is what errors call it. */
export function checkTokenizer(file: string, json: JsonObject): { vocabSize: number } {
  const model = own(json, 'model')
  const type = isObject(model) ? own(model, 'type') : undefined
  if (!isObject(model) || type !== 'BPE') throw new ModelFormatError(`Expected model.type "BPE" in ${file} but received ${show(type)}`)
  const vocab = own(model, 'vocab')
  if (!isObject(vocab)) throw new ModelFormatError(`Expected an object for model.vocab of ${file} but received ${show(vocab)}`)
  let highest = -1
  const note = (token: unknown, id: unknown) => {
    if (!Number.isInteger(id) || (id as number) < 0 || (id as number) > MAX_TOKEN_ID) {
      throw new ModelFormatError(`Expected an id in [0, ${MAX_TOKEN_ID}] for the token ${show(token)} of ${file} but received ${show(id)}`)
    }
    highest = Math.max(highest, id as number)
  }
  for (const [token, id] of Object.entries(vocab)) note(token, id)
  for (const added of addedTokens(file, json)) note(added.content, added.id)
  if (own(model, 'end_of_word_suffix')) {
    throw new ModelFormatError(`end_of_word_suffix ${show(own(model, 'end_of_word_suffix'))} of ${file} is not read; expected none`)
  }
  checkDecoder(file, own(json, 'decoder') ?? null)
  return { vocabSize: highest + 1 }
}

/** The tokens to leave out when decoding: those marked special, and those tokenizer_config.json gives a role. */
export function readSpecialTokens(
  file: string,
  json: JsonObject,
  config: JsonObject,
  idOf: (token: string) => number | undefined,
): SpecialTokens {
  const named: Record<string, string> = {}
  for (const name of NAMES) {
    const token = contentOf(own(config, name))
    if (token !== null) named[name] = token
  }
  const additional = own(config, 'additional_special_tokens')
  const tokens = [...Object.values(named), ...(Array.isArray(additional) ? additional.map(contentOf) : [])]
  const ids = tokens.map((token) => (token === null ? undefined : idOf(token))).filter((id) => id !== undefined)
  const marked = addedTokens(file, json).filter((token) => token.special)
  return { named, ids: new Set([...ids, ...marked.map((token) => token.id)]) }
}

function addedTokens(file: string, json: JsonObject): { id: number; content: string; special: boolean }[] {
  const added = own(json, 'added_tokens') ?? []
  if (!Array.isArray(added)) throw new ModelFormatError(`Expected a list for added_tokens of ${file} but received ${show(added)}`)
  return added.map((token) => {
    const content = isObject(token) ? own(token, 'content') : undefined
    if (!isObject(token) || typeof content !== 'string') {
      throw new ModelFormatError(`Expected { id, content } in added_tokens of ${file} but received ${show(token)}`)
    }
    return { id: own(token, 'id') as number, content, special: own(token, 'special') === true }
  })
}

/** A special token is given as its text, or as an object that holds it. */
function contentOf(token: unknown): string | null {
  const content = isObject(token) ? own(token, 'content') : token
  return typeof content === 'string' ? content : null
}

function checkDecoder(file: string, decoder: unknown): void {
  const steps = isObject(decoder) && own(decoder, 'type') === 'Sequence' ? own(decoder, 'decoders') : [decoder]
  const list = Array.isArray(steps) ? steps : []
  const names = list.map((step) => `${isObject(step) ? own(step, 'type') : show(step)} `).join('')
  const sound = list.every((step) => {
    if (!isObject(step)) return true
    const pattern = own(step, 'pattern')
    if (own(step, 'type') === 'Replace') return isObject(pattern) && String(own(pattern, 'String')).length === 1
    return own(step, 'type') !== 'Strip' || (own(step, 'stop') ?? 0) === 0
  })
  if (!DECODERS.test(names) || !sound) {
    throw new ModelFormatError(
      `The decoder ${show(decoder)} of ${file} is not read; expected ByteLevel, Metaspace, or Replace, ByteFallback, Fuse and Strip at the start`,
    )
  }
}
