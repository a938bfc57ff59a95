// A kernel's second operand type as bfloat16: four values in two u32.
alias wquad = vec2u;
const WQUAD_BYTES = 8u;

fn wload4(q: wquad) -> vec4f {
  return bitcast<vec4f>(vec4u(q.x << 16u, q.x & 0xffff0000u, q.y << 16u, q.y & 0xffff0000u));
}
