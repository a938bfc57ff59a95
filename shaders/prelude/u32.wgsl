// Element type uint32: four values a quad. For the elementwise collectives, and copies.
alias num = u32;
alias quad = vec4u;
const LANES = 4u;
const QUAD_BYTES = 16u;

fn load4(q: quad) -> vec4u {
  return q;
}

fn store4(v: vec4u) -> quad {
  return v;
}
