// Rows of the weights `w` that a kernel binds, in GGUF blocks: small integers that share scales. Put before the prelude of the block type, which
// defines BLOCK_QUADS, BLOCK_HALVES and wload. Blocks are counted in halves, 16 bits, since they begin at any of these; those of whole
// words begin at words. Values are those of runtime/core/blocks.ts bit by bit: every product is exact in float32 and a sum is rounded once,
// fused or not.
alias wquad = u32;

fn wrow(start: u32, row: u32, quads: u32) -> u32 {
  return start / 2u + row * (quads / BLOCK_QUADS) * BLOCK_HALVES;
}

// The half at `at` in the low bits; the upper ones are what lies there.
fn bits_at(at: u32) -> u32 {
  return w[at >> 1u] >> ((at & 1u) << 4u);
}

fn float16_at(at: u32) -> f32 {
  return unpack2x16float(bits_at(at)).x;
}

// The word that begins at half `at`.
fn word_at(at: u32) -> u32 {
  let low = w[at >> 1u];
  return select(low, (low >> 16u) | (w[(at + 1u) >> 1u] << 16u), (at & 1u) == 1u);
}

fn bytes_of(word: u32) -> vec4f {
  return vec4f((vec4u(word) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(255u));
}

// Run `run` of 32 elements in the block of type K at word `block`: its scale and its minimum, each of 6 bits, times those of the block.
fn k_scales(block: u32, run: u32) -> vec2f {
  let shift = 8u * (run & 3u);
  let first = vec2u(w[block + 1u], w[block + 2u]) >> vec2u(shift);
  let second = (vec2u(w[block + 3u]) >> vec2u(shift, shift + 4u)) & vec2u(15u);
  let later = second | ((first >> vec2u(2u)) & vec2u(48u));
  return unpack2x16float(w[block]) * vec2f(select(later, first & vec2u(63u), run < 4u));
}
