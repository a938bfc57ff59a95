// dst[b][a][0 .. width) = src[a][b][0 .. width): copies a grid of runs, swapping the two axes.
//
// Operands: 1 src (read), 2 dst (written inside the runs only). Width and strides count the prelude's quads (16 bytes, or 4 with u32x1), of
// which all of them, and both bases, are multiples; dst runs ascend: width <= dst_a, a * dst_a <= dst_b. Grid: one invocation per quad of
// dst's region. Contract: exact.
override WG: u32 = 64;
// False where p.a, or p.b, is 1: it saves a division, which is slow on some adapters.
override MANY_A: bool = true;
override MANY_B: bool = true;

struct Params {
  slices: Slices,
  a: u32,
  b: u32,
  width: u32,
  src_a: u32,
  src_b: u32,
  dst_a: u32,
  dst_b: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> src: array<quad>;
@group(0) @binding(2) var<storage, read_write> dst: array<quad>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * WG + lane;
  if (i >= (p.b - 1u) * p.dst_b + (p.a - 1u) * p.dst_a + p.width) {
    return;
  }
  var a = 0u;
  var b = 0u;
  var w = i;
  if (MANY_B) {
    b = w / p.dst_b;
    w -= b * p.dst_b;
  }
  if (MANY_A) {
    a = w / p.dst_a;
    w -= a * p.dst_a;
  }
  if (w < p.width && a < p.a) {
    let start = slice(0u, group.z) / QUAD_BYTES;
    dst[slice(1u, group.z) / QUAD_BYTES + i] = src[start + a * p.src_a + b * p.src_b + w];
  }
}
