// Rotary position embedding of queries and keys, and the append of keys and values to a cache.
//
// x [tokens, (heads + 2*kv_heads) * dim] holds q, k, v side by side. Pair (i, i + dim/2) of a q or k head at position m turns by
// m * frequency[i] (rotate-half convention); `table` [positions, dim/2] holds (cos, sin) of these angles. Operands: 1 x, 2 table (read),
// 3 q [tokens, heads * dim], 4 k cache, 5 v cache [capacity, kv_heads * dim] (written, from row `start` on). All float32.
// Grid: one invocation per token, head and pair. Portable. Contract: two products and a sum, with cos and sin rounded to float32: |error| <= 4 *
// 2^-24 * (|a| + |b|); values are copied exactly.
override WG: u32 = 64;

struct Params {
  slices: Slices,
  tokens: u32,
  heads: u32,
  kv_heads: u32,
  dim: u32,
  start: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read_write> q: array<f32>;
@group(0) @binding(4) var<storage, read_write> keys: array<f32>;
@group(0) @binding(5) var<storage, read_write> values: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let half = p.dim / 2u;
  let all = p.heads + 2u * p.kv_heads;
  let i = (group.y * groups.x + group.x) * WG + lane;
  if (i >= p.tokens * all * half) {
    return;
  }
  let pair = i % half;
  let head = (i / half) % all;
  let token = i / (half * all);
  let source = slice(0u, group.z) / 4u + (token * all + head) * p.dim + pair;
  let a = x[source];
  let b = x[source + half];
  let angle = slice(1u, group.z) / 4u + ((p.start + token) * half + pair) * 2u;
  let cosine = table[angle];
  let sine = table[angle + 1u];
  let products = keep(vec4f(a * cosine, b * sine, b * cosine, a * sine));
  let turned = vec2f(products.x - products.y, products.z + products.w);
  if (head < p.heads) {
    let to = slice(2u, group.z) / 4u + (token * p.heads + head) * p.dim + pair;
    q[to] = turned.x;
    q[to + half] = turned.y;
  } else if (head < p.heads + p.kv_heads) {
    let to = slice(3u, group.z) / 4u + ((p.start + token) * p.kv_heads + head - p.heads) * p.dim + pair;
    keys[to] = turned.x;
    keys[to + half] = turned.y;
  } else {
    let to = slice(4u, group.z) / 4u + ((p.start + token) * p.kv_heads + head - p.heads - p.kv_heads) * p.dim + pair;
    values[to] = a;
    values[to + half] = b;
  }
}
