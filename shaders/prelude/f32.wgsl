// Element type float32: four values a quad. Every dtype prelude defines the same names: num, quad, LANES, QUAD_BYTES, load4, store4.
alias num = f32;
alias quad = vec4f;
const LANES = 4u;
const QUAD_BYTES = 16u;

fn load4(q: quad) -> vec4f {
  return q;
}

fn store4(v: vec4f) -> quad {
  return v;
}
