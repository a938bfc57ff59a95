// y[t][j] = silu(x[t][j]) * x[t][n + j], silu(v) = v / (1 + exp(-v)), all in float32, one rounding.
//
// Operands: 1 x [rows, 2n] (read: gate columns, then up columns), 2 y [rows, n] (written). p.n counts quads. Grid: one invocation per quad of y.
// PORTABLE: in the steps of prelude/portable.wgsl. Contract: WGSL's exp is within 3 + 2 |v| ULP and its division within 2.5: before the one rounding, within 8 + 2 |v| ULP.
override WG: u32 = 64;
override PORTABLE: bool = false;

struct Params {
  slices: Slices,
  rows: u32,
  n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<quad>;
@group(0) @binding(2) var<storage, read_write> y: array<quad>;

fn portable_silu(gate: vec4f) -> vec4f {
  let below = 1.0 + power(-gate);
  var silu: vec4f;
  for (var c = 0u; c < LANES; c++) {
    silu[c] = divide(gate[c], below[c]);
  }
  // Where e^-gate is infinite: the zero of gate's sign.
  return select(silu, bitcast<vec4f>(bitcast<vec4u>(gate) & vec4u(0x80000000u)), gate < vec4f(-88.72283));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * WG + lane;
  if (i < p.rows * p.n) {
    let at = slice(0u, group.z) / QUAD_BYTES + (i / p.n) * 2u * p.n + i % p.n;
    let gate = load4(x[at]);
    var silu: vec4f;
    if (PORTABLE) {
      silu = portable_silu(gate);
    } else {
      silu = gate / (1.0 + exp(-gate));
    }
    y[slice(1u, group.z) / QUAD_BYTES + i] = store4(silu * load4(x[at + p.n]));
  }
}
