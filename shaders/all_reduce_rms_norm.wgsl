// s = residual + (x_0 + x_1 + ... + x_(n-1)) + bias; residual = s; y = s * rsqrt(mean(s^2) + eps) * w, or * (1 + w) where ZERO_CENTERED.
//
// The fused all-reduce of a tensor-parallel decoder (TurboMind's AllreduceResidualBiasRMSnorm). Operands: 1 x [ranks, rows, n] (read;
// rank r's partial begins at r * pitch), 2 residual [rows, n] (read, then written), 3 w [n], 4 bias [n] (read), 5 y [rows, n] (written).
// Grid: one workgroup per row, so a row's bits do not depend on the other rows. Contract: partials add in float32, ranks ascending; then
// the residual, then the bias; s is rounded to the element type once, and the norm is that of the rounded s, in float32, rounded once.
// PORTABLE: in the steps of prelude/portable.wgsl. Bytes moved per row: n * size * (ranks + 3), and w and bias.
override WG: u32 = 64;
override ZERO_CENTERED: bool = false;
override HAS_BIAS: bool = false;
override PORTABLE: bool = false;
// The number of ranks where it is known beforehand and at most 8, which saves a loop; 0 takes any number from the parameters.
override RANKS: u32 = 0;

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

var<workgroup> part: array<f32, WG>;

const STRIPES = PARTS / LANES;

fn total(at: u32) -> vec4f {
  var h = wload4(x[at]);
  if (RANKS == 0u) {
    for (var r = 1u; r < p.ranks; r++) {
      h += wload4(x[at + r * p.pitch]);
    }
  }
  if (RANKS > 1u) {
    h += wload4(x[at + p.pitch]);
  }
  if (RANKS > 2u) {
    h += wload4(x[at + 2u * p.pitch]);
  }
  if (RANKS > 3u) {
    h += wload4(x[at + 3u * p.pitch]);
  }
  if (RANKS > 4u) {
    h += wload4(x[at + 4u * p.pitch]);
  }
  if (RANKS > 5u) {
    h += wload4(x[at + 5u * p.pitch]);
  }
  if (RANKS > 6u) {
    h += wload4(x[at + 6u * p.pitch]);
  }
  if (RANKS > 7u) {
    h += wload4(x[at + 7u * p.pitch]);
  }
  return h;
}

// Adds residual and bias to a sum of partials and keeps the result; returns it as stored.
fn join(h: vec4f, ri: u32, bi: u32) -> vec4f {
  var s = load4(residual[ri]) + h;
  if (HAS_BIAS) {
    s += load4(bias[bi]);
  }
  let stored = store4(s);
  residual[ri] = stored;
  return load4(stored);
}

fn gamma(at: u32) -> vec4f {
  let g = load4(w[at]);
  return select(g, g + 1.0, ZERO_CENTERED);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.y * groups.x + group.x;
  if (row >= p.rows) {
    return;
  }
  let xi = slice(0u, group.z) / WQUAD_BYTES + row * p.quads;
  let ri = slice(1u, group.z) / QUAD_BYTES + row * p.quads;
  let wi = slice(2u, group.z) / QUAD_BYTES;
  let bi = slice(3u, group.z) / QUAD_BYTES;
  let yi = slice(4u, group.z) / QUAD_BYTES + row * p.quads;
  var scale: f32;
  if (PORTABLE) {
    for (var stripe = lane; stripe < STRIPES; stripe += WG) {
      var squares = vec4f();
      for (var i = stripe; i < p.quads; i += STRIPES) {
        let v = join(total(xi + i), ri + i, bi + i);
        squares += keep(v * v);
      }
      for (var c = 0u; c < LANES; c++) {
        parts[stripe * LANES + c] = squares[c];
      }
    }
    storageBarrier(); // the rest of the kernel reads the residual in another order
    scale = scale_of_parts(lane, WG, p.n, p.eps);
  } else {
    var sum = 0.0;
    var i = lane;
    for (; i + WG < p.quads; i += 2u * WG) { // two at a time, for the loop's own cost
      let v0 = join(total(xi + i), ri + i, bi + i);
      let v1 = join(total(xi + i + WG), ri + i + WG, bi + i + WG);
      sum += dot(v0, v0);
      sum += dot(v1, v1);
    }
    if (i < p.quads) {
      let v = join(total(xi + i), ri + i, bi + i);
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
  var i = lane;
  for (; i + WG < p.quads; i += 2u * WG) {
    let v0 = load4(residual[ri + i]);
    let v1 = load4(residual[ri + i + WG]);
    y[yi + i] = store4(v0 * scale * gamma(wi + i));
    y[yi + i + WG] = store4(v1 * scale * gamma(wi + i + WG));
  }
  if (i < p.quads) {
    y[yi + i] = store4(load4(residual[ri + i]) * scale * gamma(wi + i));
  }
}
