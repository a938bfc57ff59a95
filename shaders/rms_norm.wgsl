// y[t] = x[t] * rsqrt(mean(x[t]^2) + eps) * w, or * (1 + w) where ZERO_CENTERED: all in float32, one rounding.
//
// Operands: 1 x [rows, n] (read), 2 w [n] (read), 3 y [rows, n] (written). `quads` counts quads of a row, n its elements.
// Grid: one workgroup per row, so a row's bits do not depend on the other rows. Each lane adds its squares in ascending order, then a
// binary tree adds the lanes: relative error of the sum at most (n / WG + log2 WG) * 2^-24. PORTABLE: in the steps of prelude/portable.wgsl. Contract: within 4 ULP of float32 and the sum's
// error, before the one rounding to the element type.
override WG: u32 = 64;
override ZERO_CENTERED: bool = false;
override PORTABLE: bool = false;

struct Params {
  slices: Slices,
  rows: u32,
  quads: u32,
  n: u32,
  eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<quad>;
@group(0) @binding(2) var<storage, read> w: array<quad>;
@group(0) @binding(3) var<storage, read_write> y: array<quad>;

var<workgroup> part: array<f32, WG>;

const STRIPES = PARTS / LANES;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.y * groups.x + group.x;
  if (row >= p.rows) {
    return;
  }
  let xi = slice(0u, group.z) / QUAD_BYTES + row * p.quads;
  let wi = slice(1u, group.z) / QUAD_BYTES;
  let yi = slice(2u, group.z) / QUAD_BYTES + row * p.quads;
  var scale: f32;
  if (PORTABLE) {
    for (var stripe = lane; stripe < STRIPES; stripe += WG) {
      var squares = vec4f();
      for (var i = stripe; i < p.quads; i += STRIPES) {
        let v = load4(x[xi + i]);
        squares += keep(v * v);
      }
      for (var c = 0u; c < LANES; c++) {
        parts[stripe * LANES + c] = squares[c];
      }
    }
    scale = scale_of_parts(lane, WG, p.n, p.eps);
  } else {
    var sum = 0.0;
    for (var i = lane; i < p.quads; i += WG) {
      let v = load4(x[xi + i]);
      sum += dot(v, v);
    }
    part[lane] = sum;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
      if (lane < half) {
        part[lane] += part[lane + half];
      }
      workgroupBarrier();
    }
    scale = inverseSqrt(part[0] / f32(p.n) + p.eps);
  }
  for (var i = lane; i < p.quads; i += WG) {
    var g = load4(w[wi + i]);
    if (ZERO_CENTERED) {
      g += 1.0;
    }
    y[yi + i] = store4(load4(x[xi + i]) * scale * g);
  }
}
