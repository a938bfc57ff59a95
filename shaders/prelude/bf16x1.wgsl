// Values of bfloat16 kept in float32 words, one a quad: for rows whose length is no multiple of four. Stores round as bfloat16 does.
alias num = f32;
alias quad = f32;
const LANES = 1u;
const QUAD_BYTES = 4u;

fn load4(q: quad) -> vec4f {
  return vec4f(q, 0.0, 0.0, 0.0);
}

fn store4(v: vec4f) -> quad {
  let u = bitcast<u32>(v.x);
  let rounded = (u + 0x7fffu + ((u >> 16u) & 1u)) & 0xffff0000u;
  return bitcast<f32>(select(rounded, (u & 0x80000000u) | 0x7fc00000u, (u & 0x7fffffffu) > 0x7f800000u));
}
