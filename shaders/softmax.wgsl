// y[t] = exp(x[t] - max(x[t])) / sum(exp(x[t] - max(x[t]))), in float32.
//
// Operands: 1 x [rows, n] (read), 2 y [rows, n] (written), float32. Grid: one workgroup per row; lanes in turn, then a binary tree.
// Contract: WGSL's exp is within 3 + 2 d ULP for an argument -d: relative error <= (12 + 4 d + n) * 2^-24 for a value d below the row's
// maximum, or an absolute error below 2^-126, since WGSL lets a device flush subnormals to zero.
override WG: u32 = 64;

struct Params {
  slices: Slices,
  rows: u32,
  n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

var<workgroup> part: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.y * groups.x + group.x;
  if (row >= p.rows) {
    return;
  }
  let xi = slice(0u, group.z) / 4u + row * p.n;
  let yi = slice(1u, group.z) / 4u + row * p.n;
  var top = x[xi];
  for (var i = lane; i < p.n; i += WG) {
    top = max(top, x[xi + i]);
  }
  part[lane] = top;
  workgroupBarrier();
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      part[lane] = max(part[lane], part[lane + half]);
    }
    workgroupBarrier();
  }
  top = part[0];
  workgroupBarrier();
  var sum = 0.0;
  for (var i = lane; i < p.n; i += WG) {
    sum += exp(x[xi + i] - top);
  }
  part[lane] = sum;
  workgroupBarrier();
  for (var half = WG / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      part[lane] += part[lane + half];
    }
    workgroupBarrier();
  }
  for (var i = lane; i < p.n; i += WG) {
    y[yi + i] = exp(x[xi + i] - top) / part[0];
  }
}
