// y[t][o] = sum_k x[t][k] * w[o][k] (+ bias[o]): a product for many tokens, tiled through workgroup memory, for real GPUs.
//
// Operands as in matvec.wgsl. A workgroup of 16 x 16 computes a tile of 64 tokens by 64 outputs, k in steps of 4 quads, ascending; each
// invocation holds a 4 x 4 block. Grid: x over tiles of outputs, y over tiles of tokens. Contract: as matvec.wgsl.
override HAS_BIAS: bool = false;

const TILE = 64u;
const STEP = 4u;

struct Params {
  slices: Slices,
  tokens: u32,
  outs: u32,
  quads: u32,
  pitch: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<quad>;
@group(0) @binding(2) var<storage, read> w: array<wquad>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// [quad of k][row]: neighbours in a row are neighbours in memory.
var<workgroup> xt: array<vec4f, 256>;
var<workgroup> wt: array<vec4f, 256>;

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let xs = slice(0u, group.z) / QUAD_BYTES;
  let row = lane / STEP;
  let column = lane % STEP;
  let token = min(group.y * TILE + row, p.tokens - 1u);
  let out = min(group.x * TILE + row, p.outs - 1u);
  let wi = wrow(slice(1u, group.z), out, p.quads);
  var acc: array<vec4f, 4>;
  for (var k = 0u; k < p.quads; k += STEP) {
    var xv = vec4f();
    var wv = vec4f();
    if (k + column < p.quads) {
      xv = load4(x[xs + token * p.quads + k + column]);
      wv = wload(wi, k + column);
    }
    xt[column * TILE + row] = xv;
    wt[column * TILE + row] = wv;
    workgroupBarrier();
    for (var c = 0u; c < STEP; c++) {
      let b0 = wt[c * TILE + id.x];
      let b1 = wt[c * TILE + id.x + 16u];
      let b2 = wt[c * TILE + id.x + 32u];
      let b3 = wt[c * TILE + id.x + 48u];
      for (var m = 0u; m < 4u; m++) {
        let a = xt[c * TILE + id.y + m * 16u];
        acc[m] += vec4f(dot(a, b0), dot(a, b1), dot(a, b2), dot(a, b3));
      }
    }
    workgroupBarrier();
  }
  let yi = slice(3u, group.z) / 4u;
  for (var o = 0u; o < 4u; o++) {
    let column_out = group.x * TILE + id.x + o * 16u;
    if (column_out >= p.outs) {
      continue;
    }
    var b = 0.0;
    if (HAS_BIAS) {
      b = bias[slice(2u, group.z) / 4u + column_out];
    }
    for (var m = 0u; m < 4u; m++) {
      let t = group.y * TILE + id.y + m * 16u;
      if (t < p.tokens) {
        y[yi + t * p.pitch + column_out] = acc[m][o] + b;
      }
    }
  }
}
