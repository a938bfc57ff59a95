// y[n][t][o] = the sum over the blocks of subtree n of sum_k x[t][k] * w[o][k], for all whole subtrees of this rank's blocks of k.
//
// A product whose bits do not depend on how k is cut over ranks: k is cut into blocks of `block` quads, `first` is the index of this rank's
// first block in the whole of k. Inside a block k ascends, quad by quad, every product rounded; blocks are joined in pairs by the one binary tree over all blocks. Where WHOLE, k is
// all here: the subtrees are joined too, right to left, and the result is y[t][o] (+ bias[o]). Operands: 1 x [tokens, k] (read), 2 w [outs, k]
// (read, weight type), 3 bias [outs] (float32, read where HAS_BIAS), 4 y (float32, written; its rows
// begin `pitch` elements apart). Grid: x over blocks of 4 outputs, y over blocks of
// TOKENS (1 or 4) tokens. The bits of a row depend neither on TOKENS nor on the other rows. Contract: as matvec.wgsl, whichever way k is
// cut.
override WG: u32 = 16;
override TOKENS: u32 = 4;
override HAS_BIAS: bool = false;
override WHOLE: bool = false;

const OUTS = 4u;
// Twice the levels of a tree over 2^16 blocks, and one.
const MAX_NODES = 33u;

struct Params {
  slices: Slices,
  tokens: u32,
  outs: u32,
  quads: u32,
  block: u32,
  pitch: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<quad>;
@group(0) @binding(2) var<storage, read> w: array<wquad>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn dots(a: vec4f, w0: vec4f, w1: vec4f, w2: vec4f, w3: vec4f) -> vec4f {
  return vec4f(dot_in_order(a, w0), dot_in_order(a, w1), dot_in_order(a, w2), dot_in_order(a, w3));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let out = (group.x * WG + lane) * OUTS;
  let token = group.y * TOKENS;
  if (out >= p.outs) {
    return;
  }
  let first = own(group.z);
  let xs = slice(0u, group.z) / QUAD_BYTES;
  let ws = slice(1u, group.z);
  let last_token = p.tokens - 1u;
  let last_out = p.outs - 1u;
  let x0 = xs + min(token, last_token) * p.quads;
  let x1 = xs + min(token + 1u, last_token) * p.quads;
  let x2 = xs + min(token + 2u, last_token) * p.quads;
  let x3 = xs + min(token + 3u, last_token) * p.quads;
  let w0 = wrow(ws, min(out, last_out), p.quads);
  let w1 = wrow(ws, min(out + 1u, last_out), p.quads);
  let w2 = wrow(ws, min(out + 2u, last_out), p.quads);
  let w3 = wrow(ws, min(out + 3u, last_out), p.quads);
  // Sums of whole subtrees, left to right; column c of a matrix is token c.
  var nodes: array<mat4x4f, MAX_NODES>;
  var count = 0u;
  var blocks = 0u;
  for (var k = 0u; k < p.quads; k += p.block) {
    var sum = mat4x4f();
    for (var i = k; i < min(k + p.block, p.quads); i++) {
      let b0 = wload(w0, i);
      let b1 = wload(w1, i);
      let b2 = wload(w2, i);
      let b3 = wload(w3, i);
      sum[0] += dots(load4(x[x0 + i]), b0, b1, b2, b3);
      if (TOKENS > 1u) {
        sum[1] += dots(load4(x[x1 + i]), b0, b1, b2, b3);
        sum[2] += dots(load4(x[x2 + i]), b0, b1, b2, b3);
        sum[3] += dots(load4(x[x3 + i]), b0, b1, b2, b3);
      }
    }
    // This block ends a subtree of 2, 4, 8 ... blocks while its index is odd; the left half is here if the rank holds it.
    blocks++;
    var index = first + blocks - 1u;
    var width = 2u;
    while ((index & 1u) == 1u && blocks >= width) {
      count--;
      sum = nodes[count] + sum;
      index >>= 1u;
      width <<= 1u;
    }
    nodes[count] = sum;
    count++;
  }
  if (WHOLE) {
    while (count > 1u) {
      count--;
      nodes[count - 1u] = nodes[count - 1u] + nodes[count];
    }
  }
  let yi = slice(3u, group.z) / 4u;
  for (var n = 0u; n < count; n++) {
    let sums = nodes[n];
    for (var t = 0u; t < TOKENS && token + t < p.tokens; t++) {
      for (var o = 0u; o < OUTS && out + o < p.outs; o++) {
        var b = 0.0;
        if (HAS_BIAS) {
          b = bias[slice(2u, group.z) / 4u + out + o];
        }
        y[yi + (n * p.tokens + token + t) * p.pitch + out + o] = sums[t][o] + b;
      }
    }
  }
}
