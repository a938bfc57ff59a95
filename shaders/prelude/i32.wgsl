// Element type int32: four values a quad. For the elementwise collectives.
alias num = i32;
alias quad = vec4i;
const LANES = 4u;
const QUAD_BYTES = 16u;

fn load4(q: quad) -> vec4i {
  return q;
}

fn store4(v: vec4i) -> quad {
  return v;
}
