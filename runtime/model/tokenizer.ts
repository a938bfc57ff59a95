// Text to token ids and back, as the tokenizer.json of a model folder says; chat messages to a prompt.
import { Tokenizer as Base } from '@huggingface/tokenizers'
import { checkInteger, invalidArgument, ModelFormatError } from '../core/errors.ts'
import { type ChatMessage, ChatTemplate, findTemplate } from './chat.ts'
import { cleanUp } from './clean-up.ts'
import { readGguf } from './gguf.ts'
import { ggufTokenizer } from './gguf-tokenizer.ts'
import { asObject, isObject, type JsonObject, own, parseJson, parseLooseJson, show } from './json.ts'
import { correctPreTokenizer } from './pretokenizer.ts'
import type { ModelFolder } from './source.ts'
import { checkTokenizer, readSpecialTokens, type SpecialTokens } from './tokenizer-json.ts'

export type { ChatMessage }

export interface EncodeOptions {
  /** Put the tokens around the text that the model expects at its start and end, where it expects any. Default true. */
  addSpecialTokens?: boolean
  /**
   * Read `<|im_start|>` and its like in the text as the tokens they name (default true), or as plain characters (false): the safe way to
   * encode what a stranger wrote.
   */
  parseSpecialTokens?: boolean
}

export interface DecodeOptions {
  /** Leave special tokens out of the text. Default true. */
  skipSpecialTokens?: boolean
  /** Remove the spaces before punctuation; default: what tokenizer_config.json says, else false. */
  cleanUpSpaces?: boolean
}

export interface ChatOptions {
  /** End the prompt where the answer of the assistant begins. Default true. */
  addGenerationPrompt?: boolean
}

/** The part of the library's tokenizer that is used here. */
interface Backend {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] }
  decode(ids: number[], options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean }): string
  token_to_id(token: string): number | undefined
  id_to_token(id: number): string | undefined
}

export class Tokenizer {
  /** One more than the highest token id; models may pad their vocabulary beyond it. */
  readonly vocabSize: number
  /** Ids that `decode` leaves out by default. */
  readonly specialIds: ReadonlySet<number>
  readonly bosId: number | null
  /** The ids of `eos_token`; empty where tokenizer_config.json names none. config.json may name more. */
  readonly eosIds: readonly number[]
  /** Whether `decode` removes spaces before punctuation unless told otherwise. */
  readonly cleanUpSpaces: boolean
  readonly #name: string
  readonly #json: JsonObject
  readonly #special: SpecialTokens
  readonly #backend: Backend
  #plain: Backend | null = null
  readonly #template: ChatTemplate | null

  private constructor(name: string, json: JsonObject, config: JsonObject, template: string | null) {
    const { vocabSize } = checkTokenizer(name, json)
    this.#name = name
    this.#json = { ...json, pre_tokenizer: correctPreTokenizer(own(json, 'pre_tokenizer')) }
    this.#backend = createBackend(name, this.#json)
    this.#special = readSpecialTokens(name, json, config, (token) => this.#backend.token_to_id(token))
    this.vocabSize = vocabSize
    this.specialIds = this.#special.ids
    this.bosId = this.#idOf('bos_token')
    const eos = this.#idOf('eos_token')
    this.eosIds = eos === null ? [] : [eos]
    this.cleanUpSpaces = own(config, 'clean_up_tokenization_spaces') === true
    this.#template = template === null ? null : new ChatTemplate(template, this.#special.named)
  }

  /**
   * Reads tokenizer.json and, where they are there, tokenizer_config.json and chat_template.jinja; of a GGUF file, what its metadata says in
   * their place. Throws ERR_MODEL_FORMAT where they are damaged or of a kind that is not read.
   */
  static async load(folder: ModelFolder): Promise<Tokenizer> {
    if (folder.gguf !== undefined) {
      const { header } = await readGguf(folder)
      const { json, config, template } = ggufTokenizer(header)
      return new Tokenizer(header.file, json, config, template)
    }
    const read = async (file: string, parse: typeof parseJson) => {
      const name = `${folder.name}/${file}`
      return asObject(name, parse(name, await folder.text(file)))
    }
    const json = await read('tokenizer.json', parseLooseJson)
    const config = (await folder.exists('tokenizer_config.json')) ? await read('tokenizer_config.json', parseJson) : {}
    return new Tokenizer(`${folder.name}/tokenizer.json`, json, config, await findTemplate(folder, config))
  }

  /** Token ids of `text`. */
  encode(text: string, options: EncodeOptions = {}): number[] {
    if (typeof text !== 'string') throw invalidArgument('text', 'a string', text)
    const { addSpecialTokens = true, parseSpecialTokens = true } = options
    const backend = parseSpecialTokens ? this.#backend : this.#plainBackend()
    return backend.encode(text, { add_special_tokens: addSpecialTokens }).ids
  }

  /** Text of `ids`. Bytes that are no UTF-8 become U+FFFD; ids without a token (padding of the vocabulary) are left out. */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const { skipSpecialTokens = true, cleanUpSpaces = this.cleanUpSpaces } = options
    const shown: number[] = []
    for (const id of ids) if (this.isShown(id, skipSpecialTokens)) shown.push(id)
    if (shown.length === 0) return ''
    const text = this.#backend.decode(shown, { skip_special_tokens: false, clean_up_tokenization_spaces: false })
    return cleanUpSpaces ? cleanUp(text) : text
  }

  /** Whether `decode` takes any notice of `id`. Throws ERR_ARGUMENT on what is no token id. */
  isShown(id: number, skipSpecialTokens: boolean): boolean {
    checkInteger('token id', id, 0)
    return (this.idToToken(id) ?? '') !== '' && !(skipSpecialTokens && this.specialIds.has(id))
  }

  /** The prompt that the chat template of the model makes of `messages`. Throws ERR_MODEL_FORMAT where the folder has no template. */
  applyChatTemplate(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    if (!this.#template) {
      throw new ModelFormatError(
        `The model of ${this.#name} has no chat template (chat_template.jinja, chat_template in tokenizer_config.json, tokenizer.chat_template of a GGUF file); encode plain text instead`,
      )
    }
    return this.#template.render(messages, options.addGenerationPrompt ?? true)
  }

  /** Token ids of `applyChatTemplate`; the template itself puts the tokens at the start and end. */
  encodeChat(messages: readonly ChatMessage[], options: ChatOptions = {}): number[] {
    return this.encode(this.applyChatTemplate(messages, options), { addSpecialTokens: false })
  }

  tokenToId(token: string): number | undefined {
    return this.#backend.token_to_id(token)
  }

  /** The token as the vocabulary spells it (`Ġthe`, not ` the`). */
  idToToken(id: number): string | undefined {
    return this.#backend.id_to_token(id)
  }

  #idOf(name: string): number | null {
    const token = this.#special.named[name]
    return token === undefined ? null : (this.tokenToId(token) ?? null)
  }

  /** The same tokenizer without its special tokens, made when first asked for. */
  #plainBackend(): Backend {
    const added = own(this.#json, 'added_tokens')
    const kept = Array.isArray(added) ? added.filter((token) => isObject(token) && own(token, 'special') !== true) : []
    this.#plain ??= createBackend(this.#name, { ...this.#json, added_tokens: kept })
    return this.#plain
  }
}

function createBackend(name: string, json: JsonObject): Backend {
  try {
    return new Base(json, {}) as unknown as Backend
  } catch (cause) {
    throw new ModelFormatError(`${name} cannot be read: ${cause instanceof Error ? cause.message : show(cause)}`, { cause })
  }
}
