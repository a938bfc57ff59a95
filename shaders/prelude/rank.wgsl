// Put before every kernel: where each operand begins, for the rank this workgroup works for.
//
// N ranks that run the same kernel on slices of the same buffers are one dispatch with N workgroups in z. An operand that all
// ranks share has stride 0. `base` and `stride` are bytes, for storage bindings 1, 2, 3 ... in order. `own` is the one number
// that may differ from rank to rank (a first vocabulary row, say): its value for rank 0, and the step from rank to rank.
// The kernel's own parameters `p` begin with a `slices: Slices`.

struct Slices {
  base: array<vec4u, 2>,
  stride: array<vec4u, 2>,
  own: vec4u,
}

fn slice(operand: u32, rank: u32) -> u32 {
  return p.slices.base[operand >> 2u][operand & 3u] + rank * p.slices.stride[operand >> 2u][operand & 3u];
}

fn own(rank: u32) -> u32 {
  return p.slices.own.x + rank * p.slices.own.y;
}
