// Element type float16: four values a quad, two to a u32, the first in the low half; needs no adapter feature.
// Stores round to nearest even by integer arithmetic (pack2x16float leaves the rounding open); overflow gives infinity,
// NaN 0x7e00 with its sign.
alias num = f32;
alias quad = vec2u;
const LANES = 4u;
const QUAD_BYTES = 8u;

fn load4(q: quad) -> vec4f {
  return vec4f(unpack2x16float(q.x), unpack2x16float(q.y));
}

fn to_half(v: vec4f) -> vec4u {
  let sign = (bitcast<vec4u>(v) >> vec4u(16u)) & vec4u(0x8000u);
  let a = abs(v);
  let u = bitcast<vec4u>(a);
  let normal = (u - vec4u(0x38000000u) + vec4u(0xfffu) + ((u >> vec4u(13u)) & vec4u(1u))) >> vec4u(13u);
  let subnormal = bitcast<vec4u>(a + vec4f(0.5)) - vec4u(0x3f000000u); // the sum's last bit is worth 2^-24, half's smallest step
  var h = select(normal, subnormal, u < vec4u(0x38800000u));
  h = select(h, vec4u(0x7c00u), u >= vec4u(0x477ff000u));
  return sign | select(h, vec4u(0x7e00u), u > vec4u(0x7f800000u));
}

fn store4(v: vec4f) -> quad {
  let h = to_half(v);
  return vec2u(h.x | (h.y << 16u), h.z | (h.w << 16u));
}
