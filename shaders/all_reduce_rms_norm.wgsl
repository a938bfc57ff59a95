// s = residual + (x_0 + x_1 + ... + x_(n-1)) + bias; residual = s; y = s * rsqrt(mean(s^2) + eps) * w, or * (1 + w) where ZERO_CENTERED.
//
// The fused all-reduce of a tensor-parallel decoder (TurboMind's AllreduceResidualBiasRMSnorm). Operands: 1 x [ranks, rows, n] (read;
// rank r's partial begins at r * pitch), 2 residual [rows, n] (read, then written), 3 w [n], 4 bias [n] (read), 5 y [rows, n] (written).
// Grid: one workgroup per row, so a row's bits do not depend on the other rows. Contract: partials add in float32, ranks ascending; then
// the residual, then the bias; s is rounded to the element type once, and the norm is that of the rounded s, in float32, rounded once.
// Bytes moved per row: n * size * (ranks + 3), and w and bias.
override WG: u32 = 64;
override ZERO_CENTERED: bool = false;
override HAS_BIAS: bool = false;

struct Params {
  slices: Slices,
  rows: u32,
  quads: u32,
  n: u32,
  eps: f32,
  pitch: u32,
  ranks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<wquad>;
@group(0) @binding(2) var<storage, read_write> residual: array<quad>;
@group(0) @binding(3) var<storage, read> w: array<quad>;
@group(0) @binding(4) var<storage, read> bias: array<quad>;
@group(0) @binding(5) var<storage, read_write> y: array<quad>;

// Quads of a row that a lane keeps at hand between the sum and the norm; longer rows are read back from the residual.
const KEEP = 64u;

var<workgroup> part: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.y * groups.x + group.x;
  if (row >= p.rows) {
    return;
  }
  let xi = slice(p.slices, 0u, group.z) / WQUAD_BYTES + row * p.quads;
  let ri = slice(p.slices, 1u, group.z) / QUAD_BYTES + row * p.quads;
  let wi = slice(p.slices, 2u, group.z) / QUAD_BYTES;
  let bi = slice(p.slices, 3u, group.z) / QUAD_BYTES;
  let yi = slice(p.slices, 4u, group.z) / QUAD_BYTES + row * p.quads;
  var kept: array<vec4f, KEEP>;
  var sum = 0.0;
  var k = 0u;
  for (var i = lane; i < p.quads; i += WG) {
    var at = xi + i;
    var h = wload4(x[at]);
    for (var r = 1u; r < p.ranks; r++) {
      at += p.pitch;
      h += wload4(x[at]);
    }
    var s = load4(residual[ri + i]) + h;
    if (HAS_BIAS) {
      s += load4(bias[bi + i]);
    }
    let stored = store4(s);
    residual[ri + i] = stored;
    let v = load4(stored);
    if (k < KEEP) {
      kept[k] = v;
    }
    k++;
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
  let scale = inverseSqrt(part[0] / f32(p.n) + p.eps);
  k = 0u;
  for (var i = lane; i < p.quads; i += WG) {
    var v: vec4f;
    if (k < KEEP) {
      v = kept[k];
    } else {
      v = load4(residual[ri + i]);
    }
    k++;
    var g = load4(w[wi + i]);
    if (ZERO_CENTERED) {
      g += 1.0;
    }
    y[yi + i] = store4(v * scale * g);
  }
}
