// A kernel's second operand type as float16: four values in two u32.
alias wquad = vec2u;
const WQUAD_BYTES = 8u;

fn wload4(q: wquad) -> vec4f {
  return vec4f(unpack2x16float(q.x), unpack2x16float(q.y));
}
