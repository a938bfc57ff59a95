// Weights in blocks of q4_k: float16 d and m, 12 bytes of scales and minima, then 128 bytes of nibbles q: d * scale * q - m * minimum. Run r of
// eight of 32 elements has the low (r even) or high nibbles of bytes 32 * floor(r / 2) on.
const BLOCK_QUADS = 64u;
const BLOCK_HALVES = 72u;

fn wload(row: u32, i: u32) -> vec4f {
  let block = (row + i / BLOCK_QUADS * BLOCK_HALVES) / 2u;
  let run = (i % BLOCK_QUADS) / 8u;
  let scales = k_scales(block, run);
  let word = w[block + 4u + 8u * (run >> 1u) + (i & 7u)];
  return scales.x * bytes_of((word >> (4u * (run & 1u))) & 0x0f0f0f0fu) - scales.y;
}
