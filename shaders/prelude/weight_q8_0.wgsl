// Weights in blocks of q8_0: a float16 d, then 32 signed bytes q: d * q.
const BLOCK_QUADS = 8u;
const BLOCK_HALVES = 17u;

fn wload(row: u32, i: u32) -> vec4f {
  let block = row + i / BLOCK_QUADS * BLOCK_HALVES;
  let word = word_at(block + 1u + 2u * (i % BLOCK_QUADS));
  return float16_at(block) * vec4f(bitcast<vec4i>(vec4u(word) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u));
}
