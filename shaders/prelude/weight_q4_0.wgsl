// Weights in blocks of q4_0: a float16 d, then 16 bytes, elements 0-15 in the low nibbles q and 16-31 in the high ones: d * (q - 8).
const BLOCK_QUADS = 8u;
const BLOCK_HALVES = 9u;

fn wload(row: u32, i: u32) -> vec4f {
  let block = row + i / BLOCK_QUADS * BLOCK_HALVES;
  let word = word_at(block + 1u + 2u * (i & 3u));
  return float16_at(block) * (bytes_of((word >> (i & 4u)) & 0x0f0f0f0fu) - 8.0);
}
