// Values of float16 kept in float32 words, one a quad: for rows whose length is no multiple of four. Stores round as float16 does.
alias num = f32;
alias quad = f32;
const LANES = 1u;
const QUAD_BYTES = 4u;

fn load4(q: quad) -> vec4f {
  return vec4f(q, 0.0, 0.0, 0.0);
}

fn store4(v: vec4f) -> quad {
  let a = abs(v.x);
  let u = bitcast<u32>(a);
  let normal = (u + 0xfffu + ((u >> 13u) & 1u)) & 0xffffe000u;
  // The sum's last bit is worth 2^-24, half's smallest step.
  let subnormal = bitcast<u32>(f32(bitcast<u32>(a + 0.5) - 0x3f000000u) * 5.9604644775390625e-8);
  var r = select(normal, subnormal, u < 0x38800000u);
  r = select(r, 0x7f800000u, u >= 0x477ff000u);
  r = select(r, 0x7fc00000u, u > 0x7f800000u);
  return bitcast<f32>((bitcast<u32>(v.x) & 0x80000000u) | r);
}
