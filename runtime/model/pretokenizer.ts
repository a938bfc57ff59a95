// Corrections to the pre-tokenizer of a tokenizer.json before @huggingface/tokenizers reads it, where that library splits unlike the reference.
import { isObject, own } from './json.ts'

/** The pattern that a ByteLevel step with `use_regex` stands for: contractions, words, numbers, the rest, and runs of spaces. */
const BYTE_LEVEL_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/**
 * A `pre_tokenizer` value with two kinds of steps rewritten as the Split steps that the reference implementation amounts to:
 * - Digits splits at decimal digits only, where it should split at every Unicode number (², ½, Ⅷ, ①);
 * - ByteLevel takes for white space what JavaScript does, which adds U+FEFF to Unicode's and leaves out U+0085.
 * Other steps, and what is not a pre-tokenizer at all, come back as they are.
 */
export function correctPreTokenizer(step: unknown): unknown {
  if (!isObject(step)) return step
  const type = own(step, 'type')
  const inner = own(step, 'pretokenizers')
  if (type === 'Sequence' && Array.isArray(inner)) return { ...step, pretokenizers: inner.map(correctPreTokenizer) }
  if (type === 'Digits') return isolate(own(step, 'individual_digits') === true ? '\\p{N}' : '\\p{N}+')
  // With a prefix space the order matters: it is put before the first word, and splitting first would put it before every word.
  if (type === 'ByteLevel' && own(step, 'use_regex') !== false && own(step, 'add_prefix_space') !== true) {
    return { type: 'Sequence', pretokenizers: [isolate(BYTE_LEVEL_PATTERN), { ...step, use_regex: false }] }
  }
  return step
}

function isolate(pattern: string): object {
  return { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false }
}
