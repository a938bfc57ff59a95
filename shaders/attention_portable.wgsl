// y = softmax(q k^T * scale) v as in attention.wgsl, in the steps of runtime/core/portable.ts: the same bits on every kind of device.
//
// Operands: 1 q, 2 k cache, 3 v cache (read), 4 y (written), and parameters and limits, as there. Scores: sixteen sums over the elements of q and
// a key, element i in sum i mod 16, added in halves; their largest; powers, in sixteen sums over the keys in the same way; then for each element
// the weighted sum over ascending keys, divided once. Grid: one workgroup per token and head, WG a multiple of 16; scores are computed twice,
// rather than kept. Contract: that of attention.wgsl, each step rounded to nearest even.
override WG: u32 = 16;

const SUMS = 16u;

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
// Quads of a head: 64, and a lane has each WG-th.
const MAX_OWN = 4u;

var<workgroup> tops: array<f32, WG>;
var<workgroup> weights: array<f32, WG>;
var<workgroup> sums: array<f32, SUMS>;

fn score(qi: u32, ki: u32) -> f32 {
  var dots: array<vec4f, 4>;
  for (var c = 0u; c < p.quads; c++) {
    dots[c & 3u] += keep(q[qi + c] * keys[ki + c]);
  }
  let four = (dots[0] + dots[2]) + (dots[1] + dots[3]);
  return ((four.x + four.z) + (four.y + four.w)) * p.scale;
}

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

  var top = LOWEST;
  for (var j = first + lane; j <= here; j += WG) {
    top = max(top, score(qi, ki + j * row));
  }
  tops[lane] = top;
  if (lane < SUMS) {
    sums[lane] = 0.0;
  }
  workgroupBarrier();
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      tops[lane] = max(tops[lane], tops[lane + half]);
    }
    workgroupBarrier();
  }
  top = tops[0];

  var mixed: array<vec4f, MAX_OWN>;
  for (var chunk = first; chunk <= here; chunk += WG) {
    let seen = min(WG, here + 1u - chunk);
    if (lane < seen) {
      weights[lane] = power(vec4f(score(qi, ki + (chunk + lane) * row) - top)).x;
    }
    workgroupBarrier();
    if (lane < SUMS) {
      for (var j = lane; j < seen; j += SUMS) {
        sums[lane] += weights[j];
      }
    }
    for (var own = 0u; own < MAX_OWN; own++) {
      let c = own * WG + lane;
      if (c < p.quads) {
        for (var j = 0u; j < seen; j++) {
          mixed[own] += keep(weights[j] * values[vi + (chunk + j) * row + c]);
        }
      }
    }
    workgroupBarrier();
  }

  for (var half = SUMS / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      sums[lane] += sums[lane + half];
    }
    workgroupBarrier();
  }
  for (var own = 0u; own < MAX_OWN; own++) {
    let c = own * WG + lane;
    if (c < p.quads) {
      for (var i = 0u; i < 4u; i++) {
        y[yi + c][i] = divide(mixed[own][i], sums[0]);
      }
    }
  }
}
