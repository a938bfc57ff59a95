// Removal of the spaces before punctuation and contractions, which some tokenizers ask for after decoding; also in a stream.

/** In this order, each over the whole text. All begin with a space, and none but `heldFrom` knows what they hold otherwise. */
const RULES = [
  [' .', '.'],
  [' ?', '?'],
  [' !', '!'],
  [' ,', ','],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
] as const

export function cleanUp(text: string): string {
  return RULES.reduce((out, [from, to]) => out.replaceAll(from, to), text)
}

/**
 * Where `text` can be cut so that both parts, cleaned apart, give what the whole gives, whatever follows: a rule can only reach over the
 * cut from a space on, and only through characters that stand before the last of some rule.
 */
export function heldFrom(text: string): number {
  const at = text.search(/ [ 'nvr]*$/)
  return at < 0 ? text.length : at
}
