// y_t = routed * (x_r0 * scale_0 + x_r1 * scale_1 + ...) + shared_t: the rows that a token's experts gave it, joined on this rank.
//
// Operands: 1 x [any, n] (read; expert rows), 2 scale (read, float32), 3 index [rows, k] (read; the row of x, skipped where it is none),
// 4 shared [rows, n] (read), 5 y [rows, n] (written). Grid: flat over rows * quads. Where DENSE the k-th expert's row of token t is
// k * rows + t, and so is its scale; else index and scale are [rows, k]. Contract: products and sums in float32, experts ascending;
// routed applies once to their sum and not to shared; y is rounded to the element type once. Bytes moved per row: n * size * (k + 2).
override WG: u32 = 64;
override DENSE: bool = false;
override HAS_SCALE: bool = false;
override HAS_SHARED: bool = false;

struct Params {
  slices: Slices,
  rows: u32,
  quads: u32,
  k: u32,
  count: u32,
  routed: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<quad>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read> index: array<u32>;
@group(0) @binding(4) var<storage, read> shared_rows: array<quad>;
@group(0) @binding(5) var<storage, read_write> y: array<quad>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let at = (group.y * groups.x + group.x) * WG + lane;
  if (at >= p.rows * p.quads) {
    return;
  }
  let row = at / p.quads;
  let column = at % p.quads;
  let xi = slice(0u, group.z) / QUAD_BYTES;
  let si = slice(1u, group.z) / 4u;
  let ii = slice(2u, group.z) / 4u;
  var sum = vec4f(0.0);
  for (var k = 0u; k < p.k; k++) {
    var entry = row * p.k + k;
    var source = entry;
    if (DENSE) {
      entry = k * p.rows + row;
      source = entry;
    } else {
      source = index[ii + entry];
    }
    if (source < p.count) { // -1 is the largest of all
      var factor = 1.0;
      if (HAS_SCALE) {
        factor = scale[si + entry];
      }
      sum += load4(x[xi + source * p.quads + column]) * factor;
    }
  }
  sum *= p.routed;
  if (HAS_SHARED) {
    sum += load4(shared_rows[slice(3u, group.z) / QUAD_BYTES + at]);
  }
  y[slice(4u, group.z) / QUAD_BYTES + at] = store4(sum);
}
