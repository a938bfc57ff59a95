// Weights in blocks of q5_k: as q4_k, with 32 bytes before the nibbles whose bit r is the fifth bit of q in run r.
const BLOCK_QUADS = 64u;
const BLOCK_HALVES = 88u;

fn wload(row: u32, i: u32) -> vec4f {
  let block = (row + i / BLOCK_QUADS * BLOCK_HALVES) / 2u;
  let run = (i % BLOCK_QUADS) / 8u;
  let scales = k_scales(block, run);
  let low = w[block + 12u + 8u * (run >> 1u) + (i & 7u)] >> (4u * (run & 1u));
  let fifth = w[block + 4u + (i & 7u)] >> run;
  return scales.x * bytes_of((low & 0x0f0f0f0fu) | ((fifth & 0x01010101u) << 4u)) - scales.y;
}
