// Element type float32, one value a quad: for rows whose length is no multiple of four. Unused lanes are zero.
alias num = f32;
alias quad = f32;
const LANES = 1u;
const QUAD_BYTES = 4u;

fn load4(q: quad) -> vec4f {
  return vec4f(q, 0.0, 0.0, 0.0);
}

fn store4(v: vec4f) -> quad {
  return v.x;
}
