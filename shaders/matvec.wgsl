// y[t][o] = sum_k x[t][k] * w[o][k] (+ bias[o]): a product for few tokens, bound by reading the weights once per token.
//
// Operands: 1 x [tokens, k] (read), 2 w [outs, k] (read, weight type), 3 bias [outs] (float32, read where HAS_BIAS), 4 y [tokens, outs] (float32,
// written; its rows begin `pitch` elements apart). LANES_PER_ROW lanes share a row: lane l takes quads l, l + LANES_PER_ROW, ... in ascending order, and lane 0 adds the lanes in
// ascending order; with 1 there is no barrier at all. Grid: x over blocks of rows, y over tokens. Contract: with k terms added in any
// order, |error| <= (k + 2) * 2^-24 * sum_k |x w|, and half an ULP for the bias.
override WG: u32 = 64;
override LANES_PER_ROW: u32 = 1;
override HAS_BIAS: bool = false;

struct Params {
  slices: Slices,
  tokens: u32,
  outs: u32,
  quads: u32,
  pitch: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<quad>;
@group(0) @binding(2) var<storage, read> w: array<wquad>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

var<workgroup> part: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let out = group.x * (WG / LANES_PER_ROW) + lane / LANES_PER_ROW;
  let turn = lane % LANES_PER_ROW;
  var sum = 0.0;
  if (out < p.outs) {
    let xi = slice(0u, group.z) / QUAD_BYTES + group.y * p.quads;
    let wi = wrow(slice(1u, group.z), out, p.quads);
    var even = vec4f();
    var odd = vec4f();
    var i = turn;
    for (; i + LANES_PER_ROW < p.quads; i += 2u * LANES_PER_ROW) {
      even += load4(x[xi + i]) * wload(wi, i);
      odd += load4(x[xi + i + LANES_PER_ROW]) * wload(wi, i + LANES_PER_ROW);
    }
    if (i < p.quads) {
      even += load4(x[xi + i]) * wload(wi, i);
    }
    let both = even + odd;
    sum = both.x + both.y + both.z + both.w;
  }
  if (LANES_PER_ROW > 1u) {
    part[lane] = sum;
    workgroupBarrier();
    if (turn == 0u) {
      for (var l = 1u; l < LANES_PER_ROW; l++) {
        sum += part[lane + l];
      }
    }
  }
  if (turn == 0u && out < p.outs) {
    if (HAS_BIAS) {
      sum += bias[slice(2u, group.z) / 4u + out];
    }
    y[slice(3u, group.z) / 4u + group.y * p.pitch + out] = sum;
  }
}
