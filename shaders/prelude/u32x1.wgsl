// Element type uint32, one value a quad. For copies that move words.
alias num = u32;
alias quad = u32;
const LANES = 1u;
const QUAD_BYTES = 4u;

fn load4(q: quad) -> vec4u {
  return vec4u(q, 0u, 0u, 0u);
}

fn store4(v: vec4u) -> quad {
  return v.x;
}
