// A kernel's second operand type as float32, one value a quad: for rows whose length is no multiple of four.
alias wquad = f32;
const WQUAD_BYTES = 4u;

fn wload4(q: wquad) -> vec4f {
  return vec4f(q, 0.0, 0.0, 0.0);
}
