// Element type bfloat16: four values a quad, two to a u32, the first in the low half. Stores round to nearest even;
// NaN gives 0x7fc0 with its sign.
alias num = f32;
alias quad = vec2u;
const LANES = 4u;
const QUAD_BYTES = 8u;

fn load4(q: quad) -> vec4f {
  return bitcast<vec4f>(vec4u(q.x << 16u, q.x & 0xffff0000u, q.y << 16u, q.y & 0xffff0000u));
}

fn store4(v: vec4f) -> quad {
  let u = bitcast<vec4u>(v);
  let rounded = (u + 0x7fffu + ((u >> vec4u(16u)) & vec4u(1u))) >> vec4u(16u);
  let nan = ((u >> vec4u(16u)) & vec4u(0x8000u)) | vec4u(0x7fc0u);
  let h = select(rounded, nan, (u & vec4u(0x7fffffffu)) > vec4u(0x7f800000u));
  return vec2u(h.x | (h.y << 16u), h.z | (h.w << 16u));
}
