// y = x_0 op x_1 op ... op x_(n-1), elementwise over the ranks' slices.
//
// OP: 0 sum, 1 product, 2 minimum, 3 maximum, 4 mean (sum / divisor). Operands: 1 x [ranks, count] (read, weight type; rank r's slice begins
// at r * pitch), 2 y [count] (written). Contract: float types add in float32, ranks ascending, and round once, at the store; the bits of an
// element depend on nothing but the ranks' values of that element. Integers wrap. A NaN in any rank's operand of min and max gives NaN.
// Grid: one invocation per quad. The same kernel is a reduce-scatter: the own number is where this rank's part of every slice begins, in quads.
override WG: u32 = 64;
override OP: u32 = 0;

struct Params {
  slices: Slices,
  count: u32,
  pitch: u32,
  ranks: u32,
  divisor: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<wquad>;
@group(0) @binding(2) var<storage, read_write> y: array<quad>;

// Whether num is a float: only then a half is not zero.
const FLOATING = num(1) / num(2) != num(0);

// By the bits: WGSL lets a compiler assume that a comparison meets no NaN.
fn nan(a: vec4<num>) -> vec4<bool> {
  return vec4<bool>(FLOATING) & ((bitcast<vec4u>(a) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u));
}

fn lesser(a: vec4<num>, b: vec4<num>) -> vec4<num> {
  return select(select(select(b, a, a < b), b, nan(b)), a, nan(a));
}

fn greater(a: vec4<num>, b: vec4<num>) -> vec4<num> {
  return select(select(select(b, a, a > b), b, nan(b)), a, nan(a));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * WG + lane;
  if (i >= p.count) {
    return;
  }
  var at = slice(0u, group.z) / WQUAD_BYTES + own(group.z) + i;
  var v = wload4(x[at]);
  for (var r = 1u; r < p.ranks; r++) {
    at += p.pitch;
    let u = wload4(x[at]);
    switch OP {
      case 1u: {
        v *= u;
      }
      case 2u: {
        v = lesser(v, u);
      }
      case 3u: {
        v = greater(v, u);
      }
      default: {
        v += u;
      }
    }
  }
  if (OP == 4u) {
    v /= vec4<num>(num(p.divisor));
  }
  y[slice(1u, group.z) / QUAD_BYTES + i] = store4(v);
}
