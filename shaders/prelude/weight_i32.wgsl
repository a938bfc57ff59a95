// A kernel's second operand type as int32: the source of an elementwise collective.
alias wquad = vec4i;
const WQUAD_BYTES = 16u;

fn wload4(q: wquad) -> vec4i {
  return q;
}
