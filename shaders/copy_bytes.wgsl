// dst[b][a][0 .. width) = src[a][b][0 .. width): copies a grid of byte runs, swapping the two axes; any alignment.
//
// Operands: 1 src (read), 2 dst (written inside the runs only: the other bytes of a word keep their value). Width and strides in bytes; dst
// runs ascend: width <= dst_a, a * dst_a <= dst_b. Grid: one invocation per word of dst's region. MANY_A, MANY_B as in copy.wgsl. Contract:
// exact.
override WG: u32 = 64;
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
@group(0) @binding(1) var<storage, read> src: array<u32>;
@group(0) @binding(2) var<storage, read_write> dst: array<u32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let start = slice(0u, group.z);
  let to = slice(1u, group.z);
  let region = (p.b - 1u) * p.dst_b + (p.a - 1u) * p.dst_a + p.width;
  let word = (to >> 2u) + (group.y * groups.x + group.x) * WG + lane;
  if (word * 4u >= to + region) {
    return;
  }
  var value = dst[word];
  for (var k = 0u; k < 4u; k++) {
    let at = word * 4u + k;
    if (at < to || at >= to + region) {
      continue;
    }
    var a = 0u;
    var b = 0u;
    var w = at - to;
    if (MANY_B) {
      b = w / p.dst_b;
      w -= b * p.dst_b;
    }
    if (MANY_A) {
      a = w / p.dst_a;
      w -= a * p.dst_a;
    }
    if (w < p.width && a < p.a) {
      let from_byte = start + a * p.src_a + b * p.src_b + w;
      value = insertBits(value, src[from_byte >> 2u] >> ((from_byte & 3u) * 8u), k * 8u, 8u);
    }
  }
  dst[word] = value;
}
