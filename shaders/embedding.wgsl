// y[t] = w[id[t] - first], or zeros where id[t] is outside [first, first + rows): a vocabulary shard's partial result.
//
// Operands: 1 ids [tokens] (u32), 2 w [rows, n] (the table: read, weight type), 3 y [tokens, n] (written). `first` is the rank's own number.
// `quads` = n in quads. Grid: one invocation per quad of y. Contract: exact where y's type holds the table's values, else rounded to nearest even.
override WG: u32 = 64;

struct Params {
  slices: Slices,
  tokens: u32,
  quads: u32,
  rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> w: array<wquad>;
@group(0) @binding(3) var<storage, read_write> y: array<quad>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * WG + lane;
  if (i >= p.tokens * p.quads) {
    return;
  }
  let row = ids[slice(0u, group.z) / 4u + i / p.quads] - own(group.z);
  var v = vec4f();
  if (row < p.rows) {
    v = wload(wrow(slice(1u, group.z), row, p.quads), i % p.quads);
  }
  y[slice(2u, group.z) / QUAD_BYTES + i] = store4(v);
}
