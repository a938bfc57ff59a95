// Threefry-2x32 with 20 rounds (Salmon et al., 2011): random words from a key and a counter, in 32-bit integers alone, alike on every machine.

const PARITY = 0x1bd11bda
const ROTATIONS = [
  [13, 15, 26, 6],
  [17, 29, 16, 24],
] as const

/** Two random 32-bit words, unsigned, for a key and a counter of two words each. */
export function threefry(key: readonly [number, number], counter: readonly [number, number]): [number, number] {
  const keys = [key[0], key[1], key[0] ^ key[1] ^ PARITY] as const
  let a = (counter[0] + keys[0]) | 0
  let b = (counter[1] + keys[1]) | 0
  for (let group = 0; group < 5; group++) {
    for (const by of ROTATIONS[(group % 2) as 0 | 1]) {
      a = (a + b) | 0
      b = ((b << by) | (b >>> (32 - by))) ^ a
    }
    a = (a + (keys[((group + 1) % 3) as 0 | 1 | 2] | 0)) | 0
    b = (b + (keys[((group + 2) % 3) as 0 | 1 | 2] | 0) + group + 1) | 0
  }
  return [a >>> 0, b >>> 0]
}

/** The draw number `count` of `seed` (both non-negative safe integers) as a number in [0, 1) with 53 random bits. */
export function uniform(seed: number, count: number): number {
  const [high, low] = threefry(words(seed), words(count))
  return ((high >>> 5) * 2 ** 26 + (low >>> 6)) / 2 ** 53
}

function words(n: number): [number, number] {
  return [n >>> 0, Math.floor(n / 2 ** 32) >>> 0]
}
