// A kernel's second operand type (weights, the source of a cast) as float32: wquad, WQUAD_BYTES, wload4.
alias wquad = vec4f;
const WQUAD_BYTES = 16u;

fn wload4(q: wquad) -> vec4f {
  return q;
}
