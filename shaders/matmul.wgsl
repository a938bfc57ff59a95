// y[t][o] = sum_k x[t][k] * w[o][k] (+ bias[o]): a product blocked in registers, without barriers.
//
// Operands as in matvec.wgsl. Each invocation computes a block of TOKENS (1, 4 or 8) tokens by 4 outputs, k ascending: per quad of k it loads
// TOKENS + 4 quads and makes 16 * TOKENS multiplications. The bits of a row depend neither on TOKENS nor on the other rows. Grid: x over
// blocks of outputs, y over blocks of tokens. Suits adapters without fast workgroup memory. Contract: as matvec.wgsl.
override WG: u32 = 16;
override TOKENS: u32 = 8;
override HAS_BIAS: bool = false;

const OUTS = 4u;

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

fn dots(a: vec4f, w0: vec4f, w1: vec4f, w2: vec4f, w3: vec4f) -> vec4f {
  return vec4f(dot(a, w0), dot(a, w1), dot(a, w2), dot(a, w3));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let out = (group.x * WG + lane) * OUTS;
  let token = group.y * TOKENS;
  if (out >= p.outs) {
    return;
  }
  let xs = slice(0u, group.z) / QUAD_BYTES;
  let ws = slice(1u, group.z);
  let last_token = p.tokens - 1u;
  let last_out = p.outs - 1u;
  let x0 = xs + min(token, last_token) * p.quads;
  let x1 = xs + min(token + 1u, last_token) * p.quads;
  let x2 = xs + min(token + 2u, last_token) * p.quads;
  let x3 = xs + min(token + 3u, last_token) * p.quads;
  let x4 = xs + min(token + 4u, last_token) * p.quads;
  let x5 = xs + min(token + 5u, last_token) * p.quads;
  let x6 = xs + min(token + 6u, last_token) * p.quads;
  let x7 = xs + min(token + 7u, last_token) * p.quads;
  let w0 = wrow(ws, min(out, last_out), p.quads);
  let w1 = wrow(ws, min(out + 1u, last_out), p.quads);
  let w2 = wrow(ws, min(out + 2u, last_out), p.quads);
  let w3 = wrow(ws, min(out + 3u, last_out), p.quads);
  var a0 = vec4f();
  var a1 = vec4f();
  var a2 = vec4f();
  var a3 = vec4f();
  var a4 = vec4f();
  var a5 = vec4f();
  var a6 = vec4f();
  var a7 = vec4f();
  for (var i = 0u; i < p.quads; i++) {
    let b0 = wload(w0, i);
    let b1 = wload(w1, i);
    let b2 = wload(w2, i);
    let b3 = wload(w3, i);
    a0 += dots(load4(x[x0 + i]), b0, b1, b2, b3);
    if (TOKENS > 1u) {
      a1 += dots(load4(x[x1 + i]), b0, b1, b2, b3);
      a2 += dots(load4(x[x2 + i]), b0, b1, b2, b3);
      a3 += dots(load4(x[x3 + i]), b0, b1, b2, b3);
    }
    if (TOKENS > 4u) {
      a4 += dots(load4(x[x4 + i]), b0, b1, b2, b3);
      a5 += dots(load4(x[x5 + i]), b0, b1, b2, b3);
      a6 += dots(load4(x[x6 + i]), b0, b1, b2, b3);
      a7 += dots(load4(x[x7 + i]), b0, b1, b2, b3);
    }
  }
  let sums = array<vec4f, 8>(a0, a1, a2, a3, a4, a5, a6, a7);
  let yi = slice(3u, group.z) / 4u;
  for (var o = 0u; o < OUTS && out + o < p.outs; o++) {
    var b = 0.0;
    if (HAS_BIAS) {
      b = bias[slice(2u, group.z) / 4u + out + o];
    }
    for (var t = 0u; t < TOKENS && token + t < p.tokens; t++) {
      y[yi + (token + t) * p.pitch + out + o] = sums[t][o] + b;
    }
  }
}
