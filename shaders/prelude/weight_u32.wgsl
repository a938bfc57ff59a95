// A kernel's second operand type as uint32: the source of an elementwise collective.
alias wquad = vec4u;
const WQUAD_BYTES = 16u;

fn wload4(q: wquad) -> vec4u {
  return q;
}
