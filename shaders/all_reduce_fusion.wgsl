// h = residual + (x_0 + x_1 + ... + x_(n-1)); y = h * rsqrt(mean(h^2) + eps) * (weight_bias + w); then y quantised, in the same kernel.
//
// The all-reduce patterns. Operands: 1 x [ranks, rows, n] (read; rank r's partial begins at r * pitch), 2 residual before [rows, n],
// 3 w [n], 4 pre-norm weight [n] (read), 5 h [rows, n], 6 y [rows, n], 7 codes, four fp8 or eight fp4 a word, 8 scales (written; what a
// variant does not use is bound to memory of nobody). Grid: one workgroup per row. Contract: partials add in float32, ranks ascending,
// and each sum is rounded to the element type only where ROUND_SUMS; h is rounded once, the norm is that of the rounded h, y is rounded
// once, and what is quantised is the rounded y. With PRE_NORM the sum is normed and rounded before it joins the residual. Scales and
// codes are exact functions of y: products are rounded once, quotients correctly; NaN counts for no maximum. A row's bits do not depend
// on the other rows. Bytes moved per row: n * size * (ranks + 2 or 3), the codes and the scales.
override WG: u32 = 64;
// The number of ranks where it is known beforehand; 0 takes any number from the parameters.
override RANKS: u32 = 0;
// Writes the sum alone, to y.
override SUM_ONLY: bool = false;
override ROUND_SUMS: bool = false;
// The residual is read where h is written.
override IN_PLACE: bool = false;
override PRE_NORM: bool = false;
override NORM_OUT: bool = true;
// 0 none; 1 fp8 with one factor; 2 fp4 in blocks of 16; 3 fp8 in groups, scales powers of two; 4 fp8 with a scale for each row.
override QUANT: u32 = 0;
// Of the fp4 scales: 0 tiles of 128 rows, 1 tiles of 8 rows, 2 rows (of whole words).
override LAYOUT: u32 = 0;

struct Params {
  slices: Slices,
  // The factor divided by 8, 9, ... 15.
  eighths: array<vec4f, 2>,
  rows: u32,
  quads: u32,
  n: u32,
  eps: f32,
  pitch: u32,
  ranks: u32,
  weight_bias: f32,
  factor: f32,
  group: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<wquad>;
@group(0) @binding(2) var<storage, read> residual: array<quad>;
@group(0) @binding(3) var<storage, read> w: array<quad>;
@group(0) @binding(4) var<storage, read> w_pre: array<quad>;
@group(0) @binding(5) var<storage, read_write> h: array<quad>;
@group(0) @binding(6) var<storage, read_write> y: array<quad>;
@group(0) @binding(7) var<storage, read_write> codes: array<u32>;
@group(0) @binding(8) var<storage, read_write> scales: array<u32>;

const GROUPS = 256u; // worked on at a time

var<workgroup> part: array<f32, WG>;
var<workgroup> peaks: array<u32, WG>;
var<workgroup> group_peaks: array<atomic<u32>, GROUPS>;

// Where this row begins, in elements of each binding.
var<private> xi: u32;
var<private> ri: u32;
var<private> wi: u32;
var<private> pi: u32;
var<private> hi: u32;
var<private> yi: u32;
var<private> qi: u32;
var<private> si: u32;

fn begin(row: u32, z: u32) {
  let at = row * p.quads;
  xi = slice(0u, z) / WQUAD_BYTES + at;
  ri = slice(1u, z) / QUAD_BYTES + at;
  wi = slice(2u, z) / QUAD_BYTES;
  pi = slice(3u, z) / QUAD_BYTES;
  hi = slice(4u, z) / QUAD_BYTES + at;
  yi = slice(5u, z) / QUAD_BYTES + at;
  qi = slice(6u, z) / 4u + row * select(p.quads, p.quads / 2u, QUANT == 2u);
  si = slice(7u, z) / 4u;
}

fn total(i: u32) -> vec4f {
  let count = select(RANKS, p.ranks, RANKS == 0u);
  var s = wload4(x[xi + i]);
  for (var r = 1u; r < count; r++) {
    if (ROUND_SUMS) {
      s = load4(store4(s));
    }
    s += wload4(x[xi + i + r * p.pitch]);
  }
  if (ROUND_SUMS) {
    s = load4(store4(s));
  }
  return s;
}

// Adds the residual to the sum and keeps the result; returns it as stored.
fn join(i: u32, pre_scale: f32) -> vec4f {
  var s = total(i);
  if (PRE_NORM) {
    s = load4(store4(s * pre_scale * load4(w_pre[pi + i])));
  }
  if (IN_PLACE) {
    s = load4(h[hi + i]) + s;
  } else {
    s = load4(residual[ri + i]) + s;
  }
  let stored = store4(s);
  h[hi + i] = stored;
  return load4(stored);
}

// y as stored, kept where it is wanted.
fn normed(i: u32, scale: f32, keep: bool) -> vec4f {
  let g = load4(w[wi + i]);
  let stored = store4(load4(h[hi + i]) * scale * select(g, g + p.weight_bias, p.weight_bias != 0.0));
  if (NORM_OUT && keep) {
    y[yi + i] = stored;
  }
  return load4(stored);
}

fn row_scale(lane: u32, sum: f32) -> f32 {
  part[lane] = sum;
  workgroupBarrier();
  for (var step = WG / 2u; step > 0u; step /= 2u) {
    if (lane < step) {
      part[lane] += part[lane + step];
    }
    workgroupBarrier();
  }
  let mean = part[0] / f32(p.n);
  workgroupBarrier();
  return inverseSqrt(mean + p.eps);
}

fn row_peak(lane: u32, peak: u32) -> u32 {
  peaks[lane] = peak;
  workgroupBarrier();
  for (var step = WG / 2u; step > 0u; step /= 2u) {
    if (lane < step) {
      peaks[lane] = max(peaks[lane], peaks[lane + step]);
    }
    workgroupBarrier();
  }
  return peaks[0];
}

// factor / scale for a code of e4m3, exactly: the code is 8 to 15 times a power of two.
fn block_factor(code: u32) -> f32 {
  if (code == 0u) {
    return 0.0;
  }
  let lead = select(3u, firstLeadingBit(code), code < 8u);
  let digit = select(code & 7u, (code << (3u - lead)) & 7u, code < 8u);
  let exponent = select(i32(code >> 3u) - 10, i32(lead) - 12, code < 8u);
  return p.eighths[digit >> 2u][digit & 3u] * bitcast<f32>(u32(127 - exponent) << 23u);
}

// Quantises block k: its codes are written, the code of its scale is returned.
fn block(k: u32, scale: f32) -> u32 {
  var v: array<vec4f, 4>;
  var peak = 0u;
  for (var i = 0u; i < 4u; i++) {
    v[i] = normed(4u * k + i, scale, true);
    peak = max(peak, peak4(v[i]));
  }
  let wanted = p.factor * (bitcast<f32>(peak) * bitcast<f32>(0x3e2aaaabu));
  let bits = select(bitcast<u32>(wanted), F32_INFINITY, peak == F32_INFINITY);
  let code = pack_e4m3(vec4u(bits, 0u, 0u, 0u), vec4f(0.0));
  let factor = vec4f(block_factor(code));
  for (var i = 0u; i < 2u; i++) {
    let low = pack_e2m1(product(v[2u * i], factor), v[2u * i]);
    codes[qi + 2u * k + i] = low | (pack_e2m1(product(v[2u * i + 1u], factor), v[2u * i + 1u]) << 16u);
  }
  return code;
}

// Takes a quad into the peaks of the groups from `first` on.
fn join_groups(i: u32, first: u32, v: vec4f) {
  let j = (4u * i) / p.group - first;
  let at = (4u * i) % p.group;
  if (at + 4u <= p.group) {
    atomicMax(&group_peaks[j], peak4(v));
    return;
  }
  for (var k = 0u; k < 4u; k++) {
    atomicMax(&group_peaks[j + (at + k) / p.group], peak4(vec4f(v[k], 0.0, 0.0, 0.0)));
  }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.y * groups.x + group.x;
  if (row >= p.rows) {
    return;
  }
  begin(row, group.z);
  if (SUM_ONLY) {
    for (var i = lane; i < p.quads; i += WG) {
      y[yi + i] = store4(total(i));
    }
    return;
  }
  var sum = 0.0;
  var pre_scale = 1.0;
  if (PRE_NORM) {
    for (var i = lane; i < p.quads; i += WG) {
      let v = total(i);
      sum += dot(v, v);
    }
    pre_scale = row_scale(lane, sum);
    sum = 0.0;
  }
  for (var i = lane; i < p.quads; i += WG) {
    let v = join(i, pre_scale);
    sum += dot(v, v);
  }
  let scale = row_scale(lane, sum);
  storageBarrier(); // from here on an invocation reads h that others wrote
  if (QUANT == 0u) {
    for (var i = lane; i < p.quads; i += WG) {
      _ = normed(i, scale, true);
    }
  } else if (QUANT == 1u) {
    for (var i = lane; i < p.quads; i += WG) {
      let v = normed(i, scale, true);
      codes[qi + i] = pack_e4m3(product(v, vec4f(p.factor)), v);
    }
  } else if (QUANT == 2u) {
    let count = p.n / 16u;
    let words = (count + 3u) / 4u;
    for (var first = 0u; first < 4u * words; first += WG) {
      let k = first + lane;
      var code = 0u;
      if (k < count) {
        code = block(k, scale);
      }
      peaks[lane] = code;
      workgroupBarrier();
      if ((lane & 3u) == 0u && k < count) {
        let packed = code | (peaks[lane + 1u] << 8u) | (peaks[lane + 2u] << 16u) | (peaks[lane + 3u] << 24u);
        scales[si + block_scales(LAYOUT, row, k / 4u, words)] = packed;
      }
      workgroupBarrier();
    }
  } else if (QUANT == 3u) {
    let count = p.n / p.group;
    let words = (count + 3u) / 4u;
    let column = (p.rows + 3u) & ~3u;
    for (var first = 0u; first < count; first += GROUPS) {
      for (var j = lane; j < GROUPS; j += WG) {
        atomicStore(&group_peaks[j], 0u);
      }
      workgroupBarrier();
      let end = min(first + GROUPS, count);
      for (var i = first / 4u * p.group + lane; 4u * i < end * p.group; i += WG) {
        join_groups(i, first, normed(i, scale, false));
      }
      workgroupBarrier();
      for (var word = first / 4u + lane; 4u * word < end; word += WG) {
        var packed = 0u;
        for (var j = 4u * word; j < min(4u * word + 4u, count); j++) {
          packed |= group_exponent(atomicLoad(&group_peaks[j - first])) << (8u * (j & 3u));
        }
        scales[si + word * column + row] = packed;
        for (var spare = p.rows; row + 1u == p.rows && word + 1u < words && spare < column; spare++) {
          scales[si + word * column + spare] = 0u;
        }
      }
      workgroupBarrier();
    }
    storageBarrier();
    for (var i = lane; i < p.quads; i += WG) {
      let v = normed(i, scale, true);
      let j = (vec4u(4u * i) + vec4u(0u, 1u, 2u, 3u)) / vec4u(p.group);
      var e: vec4u;
      for (var k = 0u; k < 4u; k++) {
        e[k] = (scales[si + (j[k] >> 2u) * column + row] >> (8u * (j[k] & 3u))) & 255u;
      }
      let endless = select(vec4u(0u), vec4u(0x7fffffffu), magnitudes(v) >= vec4u(F32_INFINITY));
      let a = product(v, bitcast<vec4f>((vec4u(254u) - min(e, vec4u(253u))) << vec4u(23u)));
      codes[qi + i] = pack_e4m3(select(a, endless, e == vec4u(255u)), v);
    }
  } else {
    var peak = 0u;
    for (var i = lane; i < p.quads; i += WG) {
      peak = max(peak, peak4(normed(i, scale, true)));
    }
    let s = max(quotient(row_peak(lane, peak), F448), LEAST_ROW_SCALE);
    if (lane == 0u) {
      scales[si + row] = s;
    }
    for (var i = lane; i < p.quads; i += WG) {
      let v = normed(i, scale, false);
      let a = magnitudes(v);
      let endless = select(vec4u(0u), vec4u(0x7fffffffu), a >= vec4u(F32_INFINITY));
      let b = min(s, 0x7f7fffffu);
      let q = vec4u(quotient(a.x, b), quotient(a.y, b), quotient(a.z, b), quotient(a.w, b));
      codes[qi + i] = pack_e4m3(select(q, endless, s == F32_INFINITY), v);
    }
  }
}
