// Chat templates: which one a folder gives, and the prompt it makes of a list of messages.
import { Template } from '@huggingface/jinja'
import { ArgumentError, describe, ModelFormatError } from '../core/errors.ts'
import { isObject, type JsonObject, own, show } from './json.ts'
import type { ModelFolder } from './source.ts'

export interface ChatMessage {
  /** 'system', 'user', 'assistant', or what else the template of the model knows. */
  readonly role: string
  readonly content: string
}

const TEMPLATE_FILE = 'chat_template.jinja'

/** The template's source: chat_template.jinja, else `chat_template` of tokenizer_config.json (the one named 'default' of several), else null. */
export async function findTemplate(folder: ModelFolder, tokenizerConfig: JsonObject): Promise<string | null> {
  if (await folder.exists(TEMPLATE_FILE)) return folder.text(TEMPLATE_FILE)
  const given = own(tokenizerConfig, 'chat_template') ?? null
  if (!Array.isArray(given)) return checkTemplate(folder, given)
  const named = given.find((entry) => isObject(entry) && own(entry, 'name') === 'default')
  return checkTemplate(folder, named ? own(named, 'template') : null)
}

function checkTemplate(folder: ModelFolder, template: unknown): string | null {
  if (template !== null && typeof template !== 'string') {
    throw new ModelFormatError(`Expected text for chat_template of ${folder.name}/tokenizer_config.json but received ${show(template)}`)
  }
  return template
}

/** A parsed template; ERR_MODEL_FORMAT where it does not parse. */
export class ChatTemplate {
  readonly #template: Template
  readonly #specialTokens: Readonly<Record<string, string>>

  /** `specialTokens` are what templates call `bos_token`, `eos_token` and so on. */
  constructor(source: string, specialTokens: Readonly<Record<string, string>>) {
    try {
      this.#template = new Template(source)
    } catch (cause) {
      throw new ModelFormatError(`The chat template does not parse: ${messageOf(cause)}`, { cause })
    }
    this.#specialTokens = specialTokens
  }

  /** The prompt for `messages`. Throws ERR_ARGUMENT where they are no messages, or where the template refuses them (roles out of turn). */
  render(messages: readonly ChatMessage[], addGenerationPrompt: boolean): string {
    if (!Array.isArray(messages) || messages.length === 0) {
      throw new ArgumentError(`Expected a list of chat messages but received ${describe(messages)}`)
    }
    for (const message of messages) {
      if (typeof message?.role !== 'string' || typeof message.content !== 'string') {
        throw new ArgumentError(`Expected messages { role, content } of two texts but received ${describe(message)}`)
      }
    }
    try {
      const variables = { tools: null, documents: null, ...this.#specialTokens, messages, add_generation_prompt: addGenerationPrompt }
      return this.#template.render(variables)
    } catch (cause) {
      throw new ArgumentError(`The chat template of the model did not take these messages: ${messageOf(cause)}`, { cause })
    }
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
