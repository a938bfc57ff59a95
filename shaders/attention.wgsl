// Causal grouped-query attention over a cache: y = softmax(q k^T * scale) v for each token and head, in float32.
//
// The token at position m = start + t sees keys j with m - window < j <= m (window 0: all j <= m). Query head h reads kv head
// h / (heads / kv_heads). Operands: 1 q [tokens, heads * dim], 2 k cache, 3 v cache [capacity, kv_heads * dim] (read), 4 y [tokens, heads * dim]
// (written). dim is a multiple of 4, at most 4 * MAX_QUADS. Grid: one workgroup per token and head; its lanes take keys in turn, each with a
// running maximum and sum (online softmax), and a binary tree joins the lanes: the bits depend on the token's own keys only. Contract: with
// r the largest difference of two scores of a token, |error| <= (16 + 4 r + keys + dim) * 2^-24 * max |v|, and r's own error from q k^T,
// which has that of a product of dim terms (matvec.wgsl).
override WG: u32 = 16;

const MAX_QUADS = 64u;

struct Params {
  slices: Slices,
  tokens: u32,
  heads: u32,
  kv_heads: u32,
  quads: u32,
  start: u32,
  window: u32,
  scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4f>;
@group(0) @binding(2) var<storage, read> keys: array<vec4f>;
@group(0) @binding(3) var<storage, read> values: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4f>;

const LOWEST = -3.4e38;

var<workgroup> maxima: array<f32, WG>;
var<workgroup> sums: array<f32, WG>;
var<workgroup> sent: array<vec4f, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let at = group.y * groups.x + group.x;
  if (at >= p.tokens * p.heads) {
    return;
  }
  let head = at % p.heads;
  let kv_head = head / (p.heads / p.kv_heads);
  let here = p.start + at / p.heads;
  let row = p.kv_heads * p.quads;
  let qi = slice(0u, group.z) / 16u + at * p.quads;
  let ki = slice(1u, group.z) / 16u + kv_head * p.quads;
  let vi = slice(2u, group.z) / 16u + kv_head * p.quads;
  let yi = slice(3u, group.z) / 16u + at * p.quads;
  var first = 0u;
  if (p.window > 0u && here + 1u > p.window) {
    first = here + 1u - p.window;
  }

  var acc: array<vec4f, MAX_QUADS>;
  var top = LOWEST;
  var sum = 0.0;
  for (var j = first + lane; j <= here; j += WG) {
    var dots = vec4f();
    for (var c = 0u; c < p.quads; c++) {
      dots += q[qi + c] * keys[ki + j * row + c];
    }
    let score = (dots.x + dots.y + dots.z + dots.w) * p.scale;
    let higher = max(top, score);
    let keep = exp(top - higher);
    let weight = exp(score - higher);
    top = higher;
    sum = sum * keep + weight;
    for (var c = 0u; c < p.quads; c++) {
      acc[c] = acc[c] * keep + weight * values[vi + j * row + c];
    }
  }

  maxima[lane] = top;
  sums[lane] = sum;
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    let joins = lane < half;
    var keep = 1.0;
    var weight = 0.0;
    if (joins) {
      let higher = max(maxima[lane], maxima[lane + half]);
      keep = exp(maxima[lane] - higher);
      weight = exp(maxima[lane + half] - higher);
      maxima[lane] = higher;
      sums[lane] = sums[lane] * keep + sums[lane + half] * weight;
    }
    for (var c = 0u; c < p.quads; c++) {
      if (lane >= half && lane < 2u * half) {
        sent[lane] = acc[c];
      }
      workgroupBarrier();
      if (joins) {
        acc[c] = acc[c] * keep + sent[lane + half] * weight;
      }
      workgroupBarrier();
    }
  }
  if (lane == 0u) {
    for (var c = 0u; c < p.quads; c++) {
      y[yi + c] = acc[c] / sums[0];
    }
  }
}
