// y = softmax(q k^T * scale) v as in attention.wgsl, in the steps of runtime/core/portable.ts: the same bits on every kind of device.
//
// Operands: 1 q, 2 k cache, 3 v cache (read), 4 y (written), and parameters and limits, as there. Scores: sixteen sums over the elements of q and
// a key, element i in sum i mod 16, added in halves; their largest; powers, in sixteen sums over the keys in the same way; then for each element
// the weighted sum over ascending keys, divided once. Grid: one workgroup per token and head, WG a power of two from 4 on;
// scores beyond the first CHUNK are computed twice. Contract: that of attention.wgsl, each step rounded to nearest even.
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
// Keys whose scores and weights are held at a time.
const CHUNK = 1024u;
// Quads of a head that a lane has: all 64 are dealt out to at least four lanes.
const MAX_OWN = 16u;

var<workgroup> tops: array<f32, WG>;
var<workgroup> weights: array<f32, CHUNK>;
var<workgroup> sums: array<f32, SUMS>;

fn score(qi: u32, ki: u32) -> f32 {
  // Four quads, sixteen elements, at a time; behind the last one nothing is added.
  var dots0 = vec4f();
  var dots1 = vec4f();
  var dots2 = vec4f();
  var dots3 = vec4f();
  for (var c = 0u; c < p.quads; c += 4u) {
    dots0 += keep(q[qi + c] * keys[ki + c]);
    if (c + 1u < p.quads) {
      dots1 += keep(q[qi + c + 1u] * keys[ki + c + 1u]);
    }
    if (c + 2u < p.quads) {
      dots2 += keep(q[qi + c + 2u] * keys[ki + c + 2u]);
    }
    if (c + 3u < p.quads) {
      dots3 += keep(q[qi + c + 3u] * keys[ki + c + 3u]);
    }
  }
  let four = (dots0 + dots2) + (dots1 + dots3);
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
    let own = score(qi, ki + j * row);
    if (j - first < CHUNK) {
      weights[j - first] = own;
    }
    top = max(top, own);
  }
  tops[lane] = top;
  for (var s = lane; s < SUMS; s += WG) {
    sums[s] = 0.0;
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
  for (var chunk = first; chunk <= here; chunk += CHUNK) {
    let seen = min(CHUNK, here + 1u - chunk);
    for (var j = lane; j < seen; j += WG) {
      var own = weights[j];
      if (chunk > first) {
        own = score(qi, ki + (chunk + j) * row);
      }
      weights[j] = power(vec4f(own - top)).x;
    }
    workgroupBarrier();
    for (var s = lane; s < SUMS; s += WG) {
      for (var j = s; j < seen; j += SUMS) {
        sums[s] += weights[j];
      }
    }
    for (var own = 0u; own * WG + lane < p.quads; own++) {
      var sum = mixed[own];
      for (var j = 0u; j < seen; j++) {
        sum += keep(weights[j] * values[vi + (chunk + j) * row + own * WG + lane]);
      }
      mixed[own] = sum;
    }
    workgroupBarrier();
  }

  for (var half = SUMS / 2u; half > 0u; half /= 2u) {
    for (var s = lane; s < half; s += WG) {
      sums[s] += sums[s + half];
    }
    workgroupBarrier();
  }
  for (var own = 0u; own * WG + lane < p.quads; own++) {
    for (var i = 0u; i < 4u; i++) {
      y[yi + own * WG + lane][i] = divide(mixed[own][i], sums[0]);
    }
  }
}
