// dst[b][a][0 .. width) = src[a][b][0 .. width): copies a grid of byte runs, swapping the two axes; any alignment.
//
// Operands: 1 src (read), 2 dst (written inside the runs only). Strides in bytes; dst runs ascend: width <= dst_a, a*dst_a <= dst_b.
// Grid: one invocation per dst word. WORDS = true where every base, stride and width is a multiple of 4: then a word is moved as one.
override WG: u32 = 64;
override WORDS: bool = true;

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

// Byte of src that belongs at byte `at` of dst's region, or ~0 where none does.
fn source(at: u32) -> u32 {
  let b = at / p.dst_b;
  let in_b = at % p.dst_b;
  let a = in_b / p.dst_a;
  let w = in_b % p.dst_a;
  return select(0xffffffffu, a * p.src_a + b * p.src_b + w, b < p.b && a < p.a && w < p.width);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let start = slice(p.slices, 0u, group.z);
  let to = slice(p.slices, 1u, group.z);
  let i = (group.y * groups.x + group.x) * WG + lane;
  let region = (p.b - 1u) * p.dst_b + (p.a - 1u) * p.dst_a + p.width;
  let word = (to >> 2u) + i;
  if (word * 4u >= to + region) {
    return;
  }
  if (WORDS) {
    let s = source(i * 4u);
    if (s != 0xffffffffu) {
      dst[word] = src[(start + s) >> 2u];
    }
    return;
  }
  var value = dst[word];
  for (var k = 0u; k < 4u; k++) {
    let at = word * 4u + k;
    if (at >= to && at < to + region) {
      let s = source(at - to);
      if (s != 0xffffffffu) {
        let byte = (src[(start + s) >> 2u] >> (((start + s) & 3u) * 8u)) & 0xffu;
        value = insertBits(value, byte, k * 8u, 8u);
      }
    }
  }
  dst[word] = value;
}
