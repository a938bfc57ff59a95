// Strict JSON for files that anyone may have written: keys given twice, `__proto__` and endless nesting are refused.
import { ModelFormatError } from '../core/errors.ts'

export type JsonObject = Record<string, unknown>

const MAX_DEPTH = 64
const QUOTE = 0x22
const COLON = 0x3a
const BACKSLASH = 0x5c
const OPEN_LIST = 0x5b
const CLOSE_LIST = 0x5d
const OPEN_OBJECT = 0x7b
const CLOSE_OBJECT = 0x7d

/** Parses `text`; `file` is what errors call it. Throws ERR_MODEL_FORMAT on anything that is not one unambiguous value. */
export function parseJson(file: string, text: string): unknown {
  const value = parseLooseJson(file, text)
  checkKeys(file, text)
  return value
}

/** Parses `text` without looking at its keys, for a vocabulary, where every string may be a key. */
export function parseLooseJson(file: string, text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new ModelFormatError(`${file} is not valid JSON: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
  }
}

/** `value` where it is a JSON object, as it should be the outermost value of `file`. */
export function asObject(file: string, value: unknown): JsonObject {
  if (!isObject(value)) throw new ModelFormatError(`Expected a JSON object in ${file} but received ${show(value)}`)
  return value
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** The own property `key`, or undefined: never something inherited from Object.prototype. */
export function own(object: JsonObject, key: string): unknown {
  return Object.hasOwn(object, key) ? object[key] : undefined
}

/** A parsed value as an error message shows it: JSON on one line, cut at 80 characters. */
export function show(value: unknown): string {
  const text = JSON.stringify(value, (_, v) => (typeof v === 'number' && !Number.isFinite(v) ? String(v) : v)) ?? String(value)
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}

/** Walks JSON that is known to be valid and looks at its keys, which JSON.parse drops silently where they repeat. */
function checkKeys(file: string, text: string): void {
  const open: (Set<string> | null)[] = [] // one entry per open bracket; a set of keys where it is an object
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code === OPEN_OBJECT || code === OPEN_LIST) {
      open.push(code === OPEN_OBJECT ? new Set() : null)
      if (open.length > MAX_DEPTH) throw new ModelFormatError(`${file} nests brackets deeper than ${MAX_DEPTH}`)
    } else if (code === CLOSE_OBJECT || code === CLOSE_LIST) {
      open.pop()
    } else if (code === QUOTE) {
      const end = endOfString(text, at)
      if (isKey(text, end + 1)) addKey(file, open[open.length - 1] as Set<string>, JSON.parse(text.slice(at, end + 1)))
      at = end
    }
  }
}

/** Index of the quote that closes the string opened at `at`. */
function endOfString(text: string, at: number): number {
  let end = at + 1
  while (text.charCodeAt(end) !== QUOTE) end += text.charCodeAt(end) === BACKSLASH ? 2 : 1
  return end
}

function isKey(text: string, at: number): boolean {
  let next = at
  while (text.charCodeAt(next) <= 0x20) next++
  return text.charCodeAt(next) === COLON
}

function addKey(file: string, keys: Set<string>, key: string): void {
  if (key === '__proto__') throw new ModelFormatError(`${file} holds the key "__proto__", which no model file needs`)
  if (keys.has(key)) throw new ModelFormatError(`${file} gives the key ${show(key)} twice; which one is meant cannot be told`)
  keys.add(key)
}
