// y = a + b, elementwise: one float32 addition, one rounding to the element type; integers wrap.
//
// Operands: 1 a, 2 b (read), 3 y (written). n quads; the tail of the last quad is padding. Grid: one invocation per quad. Adapters may take
// subnormal float32 operands and sums for zero, and with them those of bfloat16. Contract: the sum of two float32 numbers rounded once:
// within 0.5 ULP.
override WG: u32 = 64;

struct Params {
  slices: Slices,
  n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<quad>;
@group(0) @binding(2) var<storage, read> b: array<quad>;
@group(0) @binding(3) var<storage, read_write> y: array<quad>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * WG + lane;
  if (i < p.n) {
    let ai = slice(0u, group.z) / QUAD_BYTES + i;
    let bi = slice(1u, group.z) / QUAD_BYTES + i;
    y[slice(2u, group.z) / QUAD_BYTES + i] = store4(load4(a[ai]) + load4(b[bi]));
  }
}
