// Float32 arithmetic with the same bits on every device: the steps of runtime/core/portable.ts. Put before kernels that have a portable form.
//
// WGSL lets a device make one step of a product and a sum, and answer divisions, roots and powers within some ULP. So products go through
// `keep`, which no compiler sees through, and the others are made of integers. Numbers below 2^-126 aside.

// A number that is zero, as nobody but the host knows, hides that v is the product it is.
fn keep(v: vec4f) -> vec4f {
  return bitcast<vec4f>(bitcast<vec4u>(v) ^ vec4u(p.slices.own.z));
}

// ((x + y) + z) + w of the rounded products.
fn dot_in_order(a: vec4f, b: vec4f) -> f32 {
  let t = keep(a * b);
  return ((t.x + t.y) + t.z) + t.w;
}

// e^v for v up to 88.72283; 0 below -87.33.
fn power(v: vec4f) -> vec4f {
  let x = clamp(v, vec4f(-87.33), vec4f(88.72283));
  let shifted = keep(keep(x * 1.44269504088896341) + 12582912.0);
  let n = shifted - 12582912.0;
  let r = (x - keep(n * 0.693359375)) - keep(n * -2.12194440e-4);
  var y = keep(r * 1.9875691500e-4) + 1.3981999507e-3;
  y = keep(y * r) + 8.3334519073e-3;
  y = keep(y * r) + 4.1665795894e-2;
  y = keep(y * r) + 1.6666665459e-1;
  y = keep(y * r) + 5.0000001201e-1;
  y = keep(y * keep(r * r)) + r + 1.0;
  let integer = bitcast<vec4i>(shifted) - 0x4b400000;
  let half = integer >> vec4u(1u);
  let first = bitcast<vec4f>(vec4u(half + 127) << vec4u(23u));
  let second = bitcast<vec4f>(vec4u(integer - half + 127) << vec4u(23u));
  return select(y * first * second, vec4f(), v < vec4f(-87.33));
}

// a / b, rounded to nearest even; b is positive. An estimate of the quotient is put right by its remainder, which fits an integer.
fn divide(a: f32, b: f32) -> f32 {
  let ua = bitcast<u32>(a);
  let ub = bitcast<u32>(b);
  let sign = ua & 0x80000000u;
  if ((ua & 0x7f800000u) == 0u) {
    return bitcast<f32>(sign);
  }
  let ma = (ua & 0x7fffffu) | 0x800000u;
  let mb = (ub & 0x7fffffu) | 0x800000u;
  // A quotient of 25 bits, the last one for rounding.
  let shift = select(25u, 24u, ma >= mb);
  var q = u32(f32(ma) / f32(mb) * f32(1u << shift));
  var rest = i32((ma << shift) - q * mb);
  for (; rest < 0; rest += i32(mb)) {
    q--;
  }
  for (; rest >= i32(mb); rest -= i32(mb)) {
    q++;
  }
  let exponent = i32((ua >> 23u) & 255u) - i32((ub >> 23u) & 255u) + i32(24u - shift);
  return assembled(sign, exponent, q, rest != 0);
}

// The square root of a positive number, rounded to nearest even; in the same way.
fn root(x: f32) -> f32 {
  let u = bitcast<u32>(x);
  if ((u & 0x7f800000u) == 0u) {
    return 0.0;
  }
  var exponent = i32(u >> 23u) - 127;
  var m = (u & 0x7fffffu) | 0x800000u;
  if ((exponent & 1) == 1) {
    m <<= 1u;
    exponent--;
  }
  // The root of m * 2^25 has 25 bits.
  var s = u32(sqrt(f32(m)) * 5792.6187515);
  var rest = i32((m << 25u) - s * s);
  for (; rest < 0; rest += i32(2u * s + 1u)) {
    s--;
  }
  for (; rest > i32(2u * s); s++) {
    rest -= i32(2u * s + 1u);
  }
  return assembled(0u, exponent / 2, s, rest != 0);
}

// A number of 25 bits, q / 2^24 * 2^exponent, and whether something is left, rounded to 24.
fn assembled(sign: u32, exponent: i32, q: u32, left: bool) -> f32 {
  let m = q >> 1u;
  let up = (q & 1u) == 1u && (left || (m & 1u) == 1u);
  return bitcast<f32>(sign | ((u32(exponent + 127) << 23u) + (m - 0x800000u) + select(0u, 1u, up)));
}

// Element i of a row adds its square to part i mod 64.
const PARTS = 64u;
var<workgroup> parts: array<f32, PARTS>;

// 1 / sqrt(mean of squares + eps) of the row whose parts the workgroup's `lanes` lanes have written: they are added in halves.
fn scale_of_parts(lane: u32, lanes: u32, n: u32, eps: f32) -> f32 {
  workgroupBarrier();
  for (var half = PARTS / 2u; half > 0u; half /= 2u) {
    for (var i = lane; i < half; i += lanes) {
      parts[i] += parts[i + half];
    }
    workgroupBarrier();
  }
  return divide(1.0, root(divide(parts[0], f32(n)) + eps));
}
