// The fused all-reduce: h and y against float64, codes and scales against tables of all codes, and the same bits in every way.
#pragma once
#include "support.h"

namespace test::norms {

/** Values of all e4m3 codes without sign, and of all e2m1 ones. */
inline double E4m3(int code) { return code < 8 ? code * 0x1p-9 : std::ldexp(8 + code % 8, code / 8 - 10); }
constexpr double kE2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

/** The code whose value is nearest to |v|; of two, the even one. */
template <typename F>
int Nearest(double v, int codes, F value) {
  int best = 0;
  for (int code = 1; code < codes; code++) {
    const double d = std::fabs(std::fabs(v) - value(code)), least = std::fabs(std::fabs(v) - value(best));
    if (d < least || (d == least && code % 2 == 0)) best = code;
  }
  return best;
}

inline int Fp8(float v, float sign) {
  const int code = std::isnan(v) ? 0x7f : std::isinf(v) ? 0x7e : Nearest(v, 0x7f, E4m3);
  return code | (std::signbit(sign) ? 0x80 : 0);
}

inline int Fp4(float v, float sign) {
  if (std::isnan(sign)) return 7;
  return (std::isinf(v) ? 7 : Nearest(v, 8, [](int c) { return kE2m1[c]; })) | (std::signbit(sign) ? 8 : 0);
}

inline float Peak(const std::vector<float>& y, int64_t first, int64_t count) {
  float peak = 0;
  for (int64_t i = first; i < first + count; i++) peak = std::max(peak, std::isnan(y[i]) ? 0 : std::fabs(y[i]));
  return peak;
}

inline float Times(float v, float factor) { return std::isinf(v) ? v : v * factor; }

struct Shape {
  int64_t rows, n;
  float eps, weight_bias;
  bool bias;
  Quant quant;
  ScaleLayout layout;
  float factor;
  int group;
  bool pad = false;
  /** A norm before the residual. */
  bool pre = false;
  bool rounded = false;

  size_t CodesOf(int64_t m) const { return quant == Quant::kNone ? 0 : quant == Quant::kFp4 ? m * n / 2 : m * n; }
  size_t ScaleBytes() const {
    const int64_t blocks = n / kFp4Block, groups = n / group, tile = layout == ScaleLayout::kTilesOf128 ? 128 : 8;
    if (quant == Quant::kFp8Rows) return rows * 4;
    if (quant == Quant::kFp8Groups) return 4 * (rows + ((groups + 3) / 4 - 1) * ((rows + 3) / 4 * 4));
    if (quant != Quant::kFp4) return 0;
    return layout == ScaleLayout::kRows ? rows * blocks : (rows + tile - 1) / tile * tile * ((blocks + 3) / 4 * 4);
  }
};

/** What a rank's call writes. */
struct Results {
  Buffer h, y, codes, scales;
};

inline size_t OffsetOf(const Shape& s, int64_t m, int64_t k) {
  const int64_t columns = s.n / kFp4Block, wide = (columns + 3) / 4;
  if (s.layout == ScaleLayout::kRows) return m * columns + k;
  if (s.layout == ScaleLayout::kTilesOf8) return m / 8 * wide * 32 + k / 4 * 32 + m % 8 * 4 + k % 4;
  return m / 128 * wide * 512 + k / 4 * 512 + m % 32 * 16 + m % 128 / 32 * 4 + k % 4;
}

template <typename T>
void CheckCodes(const Shape& s, Results& results) {
  std::vector<float> y(s.rows * s.n);
  for (size_t i = 0; i < y.size(); i++) y[i] = T::Widen(results.y.As<typename T::Bits>()[i]);
  std::vector<uint8_t> codes(s.CodesOf(s.rows), 0), scales(s.ScaleBytes(), s.quant == Quant::kFp8Groups || (s.pad && s.rows > 0) ? 0 : 0xa5);
  for (int64_t m = 0; m < s.rows; m++) {
    const int64_t row = m * s.n;
    if (s.quant == Quant::kFp8) {
      for (int64_t i = row; i < row + s.n; i++) codes[i] = Fp8(Times(y[i], s.factor), y[i]);
    } else if (s.quant == Quant::kFp8Rows) {
      const float scale = std::max(Peak(y, row, s.n) / 448, 1.0f / 512 / 448);
      std::memcpy(&scales[4 * m], &scale, 4);
      for (int64_t i = row; i < row + s.n; i++) codes[i] = Fp8(y[i] / scale, y[i]);
    } else if (s.quant == Quant::kFp8Groups) {
      for (int64_t j = 0; j < s.n / s.group; j++) {
        int exponent = 0;
        const float wanted = std::max(Peak(y, row + j * s.group, s.group) / 448, 1e-10f);
        const float mantissa = std::frexp(wanted, &exponent);
        if (mantissa == 0.5f) exponent--;  // a power of two stays
        scales[4 * (j / 4 * ((s.rows + 3) / 4 * 4) + m) + j % 4] = std::isinf(wanted) ? 255 : exponent + 127;
        for (int64_t i = row + j * s.group; i < row + (j + 1) * s.group; i++) {
          codes[i] = Fp8(std::isinf(wanted) ? y[i] * 0 : std::ldexp(y[i], -exponent), y[i]);
        }
      }
    } else if (s.quant == Quant::kFp4) {
      for (int64_t k = 0; k < s.n / kFp4Block; k++) {
        const float peak = Peak(y, row + k * kFp4Block, kFp4Block);
        const int scale = Fp8(s.factor * (peak * 0x1.555556p-3f), 1);
        scales[OffsetOf(s, m, k)] = scale;
        const float factor = scale == 0 ? 0 : static_cast<float>(s.factor / E4m3(scale));
        for (int64_t i = row + k * kFp4Block; i < row + (k + 1) * kFp4Block; i++) {
          codes[i / 2] |= Fp4(Times(y[i], factor), y[i]) << (i % 2 * 4);
        }
      }
    }
  }
  const auto compare = [&](const char* what, const std::vector<uint8_t>& wanted, const Buffer& got) {
    for (size_t i = 0; i < wanted.size(); i++) {
      if (wanted[i] == got.data()[i]) continue;
      Wrong("%s quant %d, [%ld, %ld]: byte %zu of %s is %x instead of %x", NameOf<T>(), static_cast<int>(s.quant), s.rows, s.n, i, what,
            got.data()[i], wanted[i]);
    }
  };
  compare("codes", codes, results.codes);
  compare("scales", scales, results.scales);
}

/** What all ranks are given, and one rank's operand each. */
template <typename T>
struct Inputs {
  std::vector<Buffer> in;
  Buffer residual, gamma, bias, pre_gamma;
};

template <typename T>
void CheckRows(const Shape& s, Inputs<T>& inputs, Results& results) {
  using Bits = typename T::Bits;
  for (int64_t m = 0; m < s.rows; m++) {
    double squares = 0, pre_squares = 0;
    std::vector<float> sums(s.n);
    for (int64_t i = 0; i < s.n; i++) {
      float& sum = sums[i] = T::Widen(inputs.in[0].template As<Bits>()[m * s.n + i]);
      for (size_t r = 1; r < inputs.in.size(); r++) {
        sum += T::Widen(inputs.in[r].template As<Bits>()[m * s.n + i]);
        if (s.rounded) sum = T::Widen(T::Round(sum));
      }
      pre_squares += static_cast<double>(sum) * sum;
    }
    const double pre_scale = 1 / std::sqrt(pre_squares / s.n + s.eps);
    for (int64_t i = m * s.n; i < (m + 1) * s.n; i++) {
      const double before = s.pre ? sums[i - m * s.n] * pre_scale * T::Widen(inputs.pre_gamma.template As<Bits>()[i - m * s.n]) : 0;
      float h = T::Widen(inputs.residual.template As<Bits>()[i]) + (s.pre ? static_cast<float>(before) : sums[i - m * s.n]);
      if (s.bias) h += T::Widen(inputs.bias.template As<Bits>()[i % s.n]);
      const Bits got = results.h.As<Bits>()[i];
      if (s.pre) {
        squares += static_cast<double>(T::Widen(got)) * T::Widen(got);
        // Two roundings, that before the residual and that of h.
        if (!std::isfinite(pre_squares) || !std::isfinite(h) || !std::isfinite(T::Widen(T::Round(h)))) continue;
        if (std::fabs(T::Widen(got) - h) <= 2 * (Tolerance<T>(before) + Tolerance<T>(h))) continue;
        Wrong("%s [%ld, %ld]: h of element %ld behind a norm is %g instead of %g", NameOf<T>(), s.rows, s.n, i, T::Widen(got), h);
      }
      if (got != T::Round(h)) Wrong("%s [%ld, %ld]: h of element %ld is %x instead of %x", NameOf<T>(), s.rows, s.n, i, got, T::Round(h));
      squares += static_cast<double>(T::Widen(got)) * T::Widen(got);
    }
    const double scale = 1 / std::sqrt(squares / s.n + s.eps);
    for (int64_t i = m * s.n; i < (m + 1) * s.n; i++) {
      const double gamma = T::Widen(inputs.gamma.template As<Bits>()[i % s.n]);
      const double wanted = T::Widen(results.h.As<Bits>()[i]) * scale * (gamma + s.weight_bias), got = T::Widen(results.y.As<Bits>()[i]);
      if (!std::isfinite(squares)) continue;
      if (std::fabs(got - wanted) <= Tolerance<T>(wanted)) continue;
      Wrong("%s [%ld, %ld]: y of element %ld is %g instead of %g", NameOf<T>(), s.rows, s.n, i, got, wanted);
    }
  }
}

inline void Same(const char* what, Buffer& a, const uint8_t* b, size_t bytes) {
  if (!a.GuardsHold()) Wrong("%s: written outside", what);
  if (std::memcmp(a.data(), b, bytes) != 0) Wrong("%s differs from way to way, or from rank to rank", what);
}

template <typename T>
void Run(Random& random, int ranks, const Shape& s, int most_blocks) {
  using Bits = typename T::Bits;
  const int64_t count = s.rows * s.n;
  const Group group(ranks, {DataBytes(s.rows, s.n, sizeof(typename T::Bits)), LamportBytes(ranks, s.rows, s.n, sizeof(typename T::Bits))},
                    random.OneIn(3));
  emulation::Machine machine(ranks, random.Bits());
  const Values values = random.OneIn(4) ? Values::kSpecial : Values::kOrdinary;
  const auto offset = [&] { return random.OneIn(4) ? sizeof(Bits) : 0; };
  const auto ordinary = [&] { return Elements<T>(random, s.n, Values::kOrdinary, offset()); };
  Inputs<T> inputs{{}, Elements<T>(random, count, values, offset()), ordinary(), ordinary(), ordinary()};
  for (int r = 0; r < ranks; r++) inputs.in.push_back(Elements<T>(random, count, values, offset()));
  // Every way, in one or two launches; then one row alone; the residual is changed in place once. Codes are wanted with y or without it.
  struct Call {
    Algorithm way;
    int64_t first, rows, cut;
    bool in_place, keep, shared;
    std::vector<Results> results;
  };
  std::vector<Call> calls;
  for (const Algorithm known : kWays) {
    const Algorithm way = s.pre && known == Algorithm::kTwoShot ? Algorithm::kOneShot : known;
    const int64_t cut = random.OneIn(2) ? s.rows : random.Below(static_cast<int>(s.rows) + 1);
    calls.push_back({way, 0, s.rows, cut, random.OneIn(2), calls.empty() || random.OneIn(2), random.OneIn(2), {}});
  }
  if (s.rows > 0) calls.push_back({s.pre ? Algorithm::kLamport : kWays[random.Below(3)], random.Below(static_cast<int>(s.rows)), 1, 1, false, true, random.OneIn(2), {}});
  for (auto& call : calls) {
    const auto blocks = static_cast<unsigned>(random.Between(1, most_blocks));
    Shape part = s;
    part.rows = call.rows;
    for (int r = 0; r < ranks; r++) {
      const size_t size = call.rows * s.n * sizeof(Bits), skip = call.first * s.n * sizeof(Bits);
      auto& to = call.results.emplace_back(
          Results{Buffer(size, offset()), Buffer(size, offset()), Buffer(part.CodesOf(part.rows)), Buffer(part.ScaleBytes())});
      if (call.in_place) std::memcpy(to.h.data(), inputs.residual.data() + skip, size);
      NormArgs args{group.PeersOf(r), OperandsOf(inputs.in, skip, r, call.shared),
                    call.in_place ? to.h.data() : inputs.residual.data() + skip, to.h.data(), inputs.gamma.data(),
                    s.bias ? inputs.bias.data() : nullptr, call.keep ? to.y.data() : nullptr, nullptr, call.cut, 0, call.rows, s.n, s.eps,
                    s.weight_bias, {s.quant, s.layout, s.factor, s.group, to.codes.data(), to.scales.data(), s.pad},
                    s.pre ? inputs.pre_gamma.data() : nullptr};
      args.in.rounded = s.rounded;
      LaunchNorm<T>(machine, call.way, blocks, args);
      args.first = call.cut;
      args.rows = call.rows - call.cut;
      if (args.rows > 0) LaunchNorm<T>(machine, call.way, blocks, args);
    }
  }
  machine.Run();
  Results& first = calls[0].results[0];
  CheckRows(s, inputs, first);
  CheckCodes<T>(s, first);
  for (auto& call : calls) {
    for (int r = 0; r < ranks; r++) {
      if (group.StatusOf(r) != 0) Wrong("status %x on rank %d", group.StatusOf(r), r);
      Results& to = call.results[r];
      const size_t size = call.rows * s.n * sizeof(Bits), skip = call.first * s.n * sizeof(Bits);
      Same("h", to.h, first.h.data() + skip, size);
      if (call.keep) Same("y", to.y, first.y.data() + skip, size);
      else if (!to.y.Untouched()) Wrong("y is written though nobody wants it");
      if (s.quant == Quant::kNone) continue;
      Same("codes", to.codes, first.codes.data() + s.CodesOf(call.first), to.codes.size());
      if (call.rows == s.rows) Same("scales", to.scales, first.scales.data(), to.scales.size());
    }
  }
}

inline Shape Draw(Random& random, int64_t rows, int64_t n) {
  Shape s{rows, n, random.OneIn(2) ? 1e-6f : 1e-2f, random.OneIn(2) ? 1.0f : 0.0f, random.OneIn(2), Quant::kNone, ScaleLayout::kRows, 1, 1};
  s.quant = static_cast<Quant>(random.Below(5));
  s.layout = static_cast<ScaleLayout>(random.Below(3));
  if (s.quant == Quant::kFp4) s.n = (n + kFp4Block - 1) / kFp4Block * kFp4Block;
  s.pad = random.OneIn(2);
  s.pre = random.OneIn(3);
  s.rounded = random.OneIn(4);
  s.factor = random.OneIn(2) ? 1 : std::exp2(static_cast<float>(random.Between(-4, 6))) * 1.3f;
  do s.group = random.Between(1, static_cast<int>(s.n));
  while (s.n % s.group != 0);
  return s;
}

inline void Check(Random& random, int rounds) {
  int calls = 0;
  for (int round = 0; round < rounds; round++) {
    for (const int ranks : {1, 2, 4, 8, random.Between(3, kMostRanks)}) {
      const int64_t rows = random.Between(0, 6), n = random.OneIn(2) ? 8 * random.Between(1, 64) : random.Between(1, 300);
      EachType([&]<typename T>(T) {
        Run<T>(random, ranks, Draw(random, rows, n), 3);
        calls += 4;
      });
    }
  }
  // Rows for which a thread has several vectors.
  if constexpr (!kFewKernels) {
    Run<Float32>(random, 2, Draw(random, 1, random.Between(4100, 8300)), 1);
    // Several tiles of scales.
    Shape tall = Draw(random, random.Between(130, 150), 16 * random.Between(1, 9));
    tall.quant = Quant::kFp4;
    Run<Bfloat16>(random, 2, tall, 4);
    calls += 8;
  }
  std::printf("%d fused norms\n", calls);
}

}  // namespace test::norms
