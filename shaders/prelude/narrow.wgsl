// Encoders of the narrow formats, put before kernels that quantise: fp8 (e4m3fn) and fp4 (e2m1) codes to nearest even, saturating, signs
// kept; their scales; a division that is rounded correctly. Bits are compared, not floats: a compiler may assume that there is no NaN.
const F32_INFINITY = 0x7f800000u;
const F448 = 0x43e00000u;
const LEAST_ROW_SCALE = 0x36924925u; // (1 / 512) / 448
const LEAST_GROUP_SCALE = 0x2edbe6ffu; // 1e-10

fn magnitudes(v: vec4f) -> vec4u {
  return bitcast<vec4u>(v) & vec4u(0x7fffffffu);
}

// Four e4m3 codes from the bits of |v|, with the signs of `n`, as one word. NaN gives 0x7f with its sign; infinity 448.
fn pack_e4m3(a: vec4u, n: vec4f) -> u32 {
  let normal = ((a + 0x7ffffu + ((a >> vec4u(20u)) & vec4u(1u))) >> vec4u(20u)) - 960u;
  // The sum's last bit is worth 2^-9, the smallest step of e4m3.
  let subnormal = bitcast<vec4u>(bitcast<vec4f>(a) + vec4f(16384.0)) - 0x46800000u;
  var code = min(select(normal, subnormal, a < vec4u(0x3c800000u)), vec4u(0x7eu));
  code = select(code, vec4u(0x7fu), a > vec4u(F32_INFINITY));
  code |= (bitcast<vec4u>(n) >> vec4u(24u)) & vec4u(0x80u);
  return code.x | (code.y << 8u) | (code.z << 16u) | (code.w << 24u);
}

// Four e2m1 codes from the bits of |v|, with the signs of `n`, in the low 16 bits. Where `n` is NaN: +6.
fn pack_e2m1(a: vec4u, n: vec4f) -> u32 {
  var code = vec4u(a > vec4u(0x3e800000u)) + vec4u(a >= vec4u(0x3f400000u)) + vec4u(a > vec4u(0x3fa00000u));
  code += vec4u(a >= vec4u(0x3fe00000u)) + vec4u(a > vec4u(0x40200000u)) + vec4u(a >= vec4u(0x40600000u)) + vec4u(a > vec4u(0x40a00000u));
  code |= (bitcast<vec4u>(n) >> vec4u(28u)) & vec4u(8u);
  code = select(code, vec4u(7u), magnitudes(n) > vec4u(F32_INFINITY));
  return code.x | (code.y << 4u) | (code.z << 8u) | (code.w << 12u);
}

// The bits of the float32 nearest to a / b, from the bits of two numbers of which neither is negative; b is normal and finite. The device
// divides mantissas within 2.5 steps; the remainder, small and so exact modulo 2^32, tells how many steps off that is. Quotients below
// 2^-126, and of subnormal a, give 0; infinity and NaN stay.
fn quotient(a: u32, b: u32) -> u32 {
  if (a >= F32_INFINITY) {
    return a;
  }
  let ma = (a & 0x7fffffu) | 0x800000u;
  let mb = (b & 0x7fffffu) | 0x800000u;
  let less = u32(ma < mb);
  var q = u32(f32(ma) / f32(mb) * f32(1u << (23u + less)));
  var r = i32((ma << (23u + less)) - q * mb);
  for (var i = 0; i < 4; i++) {
    let step = select(0, 1, 2 * r > i32(mb)) - select(0, 1, 2 * r < -i32(mb));
    q = u32(i32(q) + step);
    r -= step * i32(mb);
  }
  let e = i32(a >> 23u) - i32(b >> 23u) + 127 - i32(less);
  if (a < 0x800000u || e < 1) {
    return 0u;
  }
  return select((u32(e) << 23u) + q - 0x800000u, F32_INFINITY, e > 254);
}

// The bits of the largest |v|; NaN counts as 0.
fn peak4(v: vec4f) -> u32 {
  let a = magnitudes(v);
  let b = select(a, vec4u(0u), a > vec4u(F32_INFINITY));
  return max(max(b.x, b.y), max(b.z, b.w));
}

fn product(v: vec4f, factor: vec4f) -> vec4u {
  return select(magnitudes(v * factor), magnitudes(v), magnitudes(v) >= vec4u(F32_INFINITY));
}

// The exponent byte of a group's scale: that of its peak / 448, rounded up to a power of two.
fn group_exponent(peak: u32) -> u32 {
  return (max(quotient(peak, F448), LEAST_GROUP_SCALE) + 0x7fffffu) >> 23u;
}

// Where the word of four block scales lies that begins with block 4 * word of a row: in tiles of 128 rows, of 8 rows, or row by row.
fn block_scales(order: u32, row: u32, word: u32, words: u32) -> u32 {
  if (order == 0u) {
    return ((row >> 7u) * words + word) * 128u + (row & 31u) * 4u + ((row & 127u) >> 5u);
  }
  if (order == 1u) {
    return ((row >> 3u) * words + word) * 8u + (row & 7u);
  }
  return row * words + word;
}
