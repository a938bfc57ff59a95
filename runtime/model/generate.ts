// A language model ready to write: weights, tokenizer and the loop that turns a prompt into a stream of tokens, alike on every rank.
import type { Communicator } from '../comm/communicator.ts'
import { ArgumentError, checkInteger, ModelFormatError } from '../core/errors.ts'
import type { Device } from '../device/device.ts'
import { type MemoryGiven, rankMemory } from '../scheduler/memory.ts'
import { type LlamaConfig, parseConfig, parseTokenIds } from './config.ts'
import { StreamDetokenizer } from './detokenizer.ts'
import { readGguf } from './gguf.ts'
import type { QuantizedAs } from './gguf-weights.ts'
import { isObject, own, parseJson } from './json.ts'
import { Llama, type LlamaOptions } from './llama.ts'
import { measureRanks } from './measure.ts'
import { Sampler, type SamplerOptions } from './sampling.ts'
import type { ModelFolder } from './source.ts'
import { type ChatMessage, Tokenizer } from './tokenizer.ts'
import { openWeights } from './weights.ts'

export interface GenerateOptions extends SamplerOptions {
  /** Tokens to write at most; defaults to what the cache has room for. */
  maxNewTokens?: number
  /** Ends the stream on every rank: the loop throws the signal's reason. */
  signal?: AbortSignal
  /** Token ids that end the text; defaults to the model's own. One is yielded only where it makes held-back text final. */
  stopIds?: readonly number[]
}

export interface GeneratedToken {
  id: number
  /** Text that has become final with this token; pieces of one character may arrive with a later token. */
  text: string
  /** The token's place in the generated text, from 0. */
  index: number
}

export interface LoadOptions extends Omit<LlamaOptions, 'shares' | 'memory' | 'speeds' | 'collectiveSeconds'> {
  /** What the quantized matrices of a GGUF file are kept as: `blocks` (the default), as they are, or `float32` or `bfloat16`. */
  quantizedAs?: QuantizedAs | undefined
  /** How the model is shared out, one number of any unit a rank, or `measured`: by how fast each rank decodes; see measureRanks. */
  shares?: readonly number[] | 'measured' | undefined
  /** Bytes that each rank's weights and key-value cache may take, or `free`: what is free; see rankMemory. Without `shares` they decide. */
  memory?: MemoryGiven | undefined
}

export class LanguageModel implements Disposable {
  readonly llama: Llama
  readonly tokenizer: Tokenizer
  readonly stopIds: readonly number[]
  readonly #comm: Communicator

  private constructor(llama: Llama, tokenizer: Tokenizer, stopIds: readonly number[], comm: Communicator) {
    this.llama = llama
    this.tokenizer = tokenizer
    this.stopIds = stopIds
    this.#comm = comm
  }

  /** Reads a Hugging Face model folder or a GGUF file; collective: every rank calls it and reads its own part. */
  static async load(
    folder: ModelFolder,
    context: { comm: Communicator; device: Device },
    options: LoadOptions = {},
  ): Promise<LanguageModel> {
    const config = await readConfig(folder)
    const tokenizer = await Tokenizer.load(folder)
    if (tokenizer.vocabSize > config.vocabSize) {
      throw new ModelFormatError(
        `The tokenizer of ${folder.name} has ${tokenizer.vocabSize} tokens, more than the ${config.vocabSize} that its model knows (vocab_size)`,
      )
    }
    const weights = await openWeights(folder, { quantizedAs: options.quantizedAs })
    try {
      const cut = options.shares === 'measured' ? await measureRanks(config, weights, context) : { shares: options.shares }
      const memory = options.memory && (await rankMemory(context, options.memory))
      const llama = await Llama.load(config, weights, context, { ...options, ...cut, memory })
      return new LanguageModel(llama, tokenizer, await readStopIds(folder, config, tokenizer), context.comm)
    } finally {
      await weights.close()
    }
  }

  /**
   * Continues a prompt (text, token ids, or chat messages through the model's template), token by token. Collective: every rank runs the
   * same loop to its end with the same arguments. The key-value cache starts anew.
   * @throws ERR_ARGUMENT for an empty prompt, one that does not fit the cache, or bad sampling options; the signal's reason on abort.
   */
  async *generate(
    prompt: string | readonly number[] | readonly ChatMessage[],
    options: GenerateOptions = {},
  ): AsyncGenerator<GeneratedToken, void, void> {
    const { llama } = this
    const { signal, stopIds = this.stopIds } = options
    const sampler = new Sampler(options)
    const text = new StreamDetokenizer(this.tokenizer)
    const ids = this.encode(prompt)
    if (ids.length === 0) throw new ArgumentError('The prompt has no tokens; give at least one character, or one token id')
    const room = llama.capacity - ids.length
    const { maxNewTokens = Math.max(room + 1, 0) } = options
    checkInteger('maxNewTokens', maxNewTokens, 0)
    if (room < 0) {
      throw new ArgumentError(
        `The prompt has ${ids.length} tokens, but the cache holds ${llama.capacity}; shorten it or load with a larger capacity`,
      )
    }
    llama.truncate(0)
    let next: readonly number[] = ids
    for (let index = 0; index < Math.min(maxNewTokens, room + 1); index++) {
      if (signal && (await this.#comm.host.broadcast(signal.aborted)))
        throw signal.reason ?? new ArgumentError('Another rank stopped the text')
      using logits = await llama.forward(next)
      const id = sampler.next(await logits.last())
      if (stopIds.includes(id)) {
        const rest = text.flush()
        if (rest !== '') yield { id, text: rest, index }
        return
      }
      const last = index + 1 === Math.min(maxNewTokens, room + 1)
      yield { id, text: text.push(id) + (last ? text.flush() : ''), index }
      next = [id]
    }
  }

  /** Token ids of a prompt. */
  encode(prompt: string | readonly number[] | readonly ChatMessage[]): number[] {
    if (typeof prompt === 'string') return this.tokenizer.encode(prompt)
    if (prompt.every((item) => typeof item === 'number')) return [...prompt]
    return this.tokenizer.encodeChat(prompt as readonly ChatMessage[])
  }

  dispose(): void {
    this.llama.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** config.json of a model folder, or what the metadata of its GGUF file says in its place. */
export async function readConfig(folder: ModelFolder): Promise<LlamaConfig> {
  if (folder.gguf !== undefined) return (await readGguf(folder)).config
  return parseConfig(parseJson(`${folder.name}/config.json`, await folder.text('config.json')))
}

/** End tokens, as generation_config.json, config.json and the tokenizer name them: the first that names any. */
async function readStopIds(folder: ModelFolder, config: LlamaConfig, tokenizer: Tokenizer): Promise<readonly number[]> {
  const file = 'generation_config.json'
  if (folder.gguf === undefined && (await folder.exists(file))) {
    const json = parseJson(`${folder.name}/${file}`, await folder.text(file))
    const ids = isObject(json) ? parseTokenIds('eos_token_id', own(json, 'eos_token_id'), config.vocabSize) : []
    if (ids.length > 0) return ids
  }
  return config.eosTokenIds.length > 0 ? config.eosTokenIds : tokenizer.eosIds
}
