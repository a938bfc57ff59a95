// y[i] = x[i], converted: read as the weight prelude's type, stored as the dtype prelude's (round to nearest even).
//
// Operands: 1 x (read), 2 y (written). n quads; the tail of the last quad is padding. Grid: one invocation per quad. Exact
// where y's type holds x's value, subnormals included; only NaN changes, to the one NaN of a 16-bit y with x's sign.
override WG: u32 = 64;

struct Params {
  slices: Slices,
  n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<wquad>;
@group(0) @binding(2) var<storage, read_write> y: array<quad>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * WG + lane;
  if (i < p.n) {
    y[slice(1u, group.z) / QUAD_BYTES + i] = store4(wload4(x[slice(0u, group.z) / WQUAD_BYTES + i]));
  }
}
