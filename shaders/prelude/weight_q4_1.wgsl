// Weights in blocks of q4_1: float16 d and m, then 16 bytes, elements 0-15 in the low nibbles q and 16-31 in the high ones: d * q + m.
const BLOCK_QUADS = 8u;
const BLOCK_HALVES = 10u;

fn wload(row: u32, i: u32) -> vec4f {
  let block = (row + i / BLOCK_QUADS * BLOCK_HALVES) / 2u;
  let scales = unpack2x16float(w[block]);
  return scales.x * bytes_of((w[block + 1u + (i & 3u)] >> (i & 4u)) & 0x0f0f0f0fu) + scales.y;
}
