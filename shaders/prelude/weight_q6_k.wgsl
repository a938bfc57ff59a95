// Weights in blocks of q6_k: 128 bytes of nibbles, 64 bytes of upper pairs of bits, 16 signed bytes of scales, a float16 d: d * scale * (q - 32).
// Two parts of four runs of 32 elements: run r of a part has nibbles of bytes 32 * (r & 1) on (high ones from r = 2) and bit pair r of 32
// upper bytes; a scale is that of 16 elements.
const BLOCK_QUADS = 64u;
const BLOCK_HALVES = 105u;

fn wload(row: u32, i: u32) -> vec4f {
  let block = row + i / BLOCK_QUADS * BLOCK_HALVES;
  let part = (i / 32u) & 1u;
  let run = (i / 8u) & 3u;
  let low = word_at(block + 32u * part + 16u * (run & 1u) + 2u * (i & 7u)) >> (4u * (run >> 1u));
  let high = word_at(block + 64u + 16u * part + 2u * (i & 7u)) >> (2u * run);
  let scales = bits_at(block + 96u + (i % BLOCK_QUADS) / 8u);
  let scale = float16_at(block + 104u) * f32(bitcast<i32>(scales << (24u - 2u * (i & 4u))) >> 24u);
  return scale * (bytes_of((low & 0x0f0f0f0fu) | ((high & 0x03030303u) << 4u)) - 32.0);
}
