// The k largest values of each row in descending order, equal values by ascending index; k = 1 is argmax.
//
// Operands: 1 x [rows, n] (read, float32), 2 values [rows, k] (float32), 3 indices [rows, k] (u32) (written). NaN counts as lowest.
// Grid: one workgroup per row. Round i finds the first (value, index) after the one of round i-1 in that order: k passes over the row, meant
// for k up to about a hundred. Contract: exact.
override WG: u32 = 64;

struct Params {
  slices: Slices,
  rows: u32,
  n: u32,
  k: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;
@group(0) @binding(3) var<storage, read_write> indices: array<u32>;

var<workgroup> best_key: array<u32, WG>;
var<workgroup> best_at: array<u32, WG>;

// Floats as integers of the same order: NaN lowest, -0 and 0 alike.
fn key(v: f32) -> u32 {
  let u = bitcast<u32>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) {
    return 0u;
  }
  if (u == 0x80000000u) {
    return 0x80000000u;
  }
  return select(u | 0x80000000u, ~u, (u >> 31u) == 1u);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.y * groups.x + group.x;
  if (row >= p.rows) {
    return;
  }
  let xi = slice(0u, group.z) / 4u + row * p.n;
  var last_key = 0xffffffffu;
  var last_at = 0u;
  for (var round = 0u; round < p.k; round++) {
    var top = 0u;
    var at = 0xffffffffu;
    for (var i = lane; i < p.n; i += WG) {
      let u = key(x[xi + i]);
      let left = u < last_key || (u == last_key && i > last_at);
      if (left && (at == 0xffffffffu || u > top)) {
        top = u;
        at = i;
      }
    }
    best_key[lane] = top;
    best_at[lane] = at;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
      if (lane < half) {
        let u = best_key[lane + half];
        let i = best_at[lane + half];
        if (i != 0xffffffffu && (best_at[lane] == 0xffffffffu || u > best_key[lane] || (u == best_key[lane] && i < best_at[lane]))) {
          best_key[lane] = u;
          best_at[lane] = i;
        }
      }
      workgroupBarrier();
    }
    last_key = best_key[0];
    last_at = best_at[0];
    if (lane == 0u) {
      values[slice(1u, group.z) / 4u + row * p.k + round] = x[xi + last_at];
      indices[slice(2u, group.z) / 4u + row * p.k + round] = last_at;
    }
    workgroupBarrier();
  }
}
