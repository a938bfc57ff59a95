// What the tests of the kernels share: random elements, memory with guards around it, workspaces of a group, and how a failure is told.
#pragma once
#include <sys/mman.h>

#include <cstdarg>
#include <limits>
#include <string>

#include "gather.cuh"
#include "moe_norm.cuh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace test {

using namespace rankmesh::cuda;

/** Under a sanitizer, which makes compiling slow: one element type, and kernels that can do all for calls that need less. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kFewKernels = true;
#else
constexpr bool kFewKernels = false;
#endif

constexpr int kMostRanks = kFewKernels ? 8 : kMaxRanks;

/** Tells what is wrong and ends the program. */
[[noreturn]] inline void Wrong(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
  std::fflush(stdout);
  std::_Exit(1);
}

class Random {
 public:
  explicit Random(uint32_t seed) : counter_(seed) {}
  uint32_t Bits() {
    uint32_t word = counter_ += 0x9e3779b9u;
    word = (word ^ (word >> 16)) * 0x85ebca6bu;
    word = (word ^ (word >> 13)) * 0xc2b2ae35u;
    return word ^ (word >> 16);
  }
  int Below(int n) { return static_cast<int>(static_cast<uint64_t>(Bits()) * n >> 32); }
  int Between(int least, int most) { return least + Below(most - least + 1); }
  bool OneIn(int n) { return Below(n) == 0; }
  /** About normal: a sum of twelve uniform numbers. */
  float Normal() {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += Bits() / 4294967296.0;
    return static_cast<float>(sum);
  }

 private:
  uint32_t counter_;
};

template <typename T>
const char* NameOf() {
  return std::is_same_v<T, Float32> ? "float32" : std::is_same_v<T, Bfloat16> ? "bfloat16" : std::is_same_v<T, Float16> ? "float16" : "words";
}

inline const char* NameOf(Algorithm way) {
  return way == Algorithm::kOneShot ? "one-shot" : way == Algorithm::kTwoShot ? "two-shot" : "lamport";
}

/** Bytes at an address of any alignment, poisoned, with guards before and after. */
class Buffer {
 public:
  explicit Buffer(size_t bytes = 0, size_t offset = 0)
      : bytes_(bytes), memory_(kGuard + offset + bytes + kGuard, kPoison), at_(kGuard + offset) {
    if (reinterpret_cast<uintptr_t>(memory_.data()) % 16 != 0) Wrong("the allocator aligns to less than 16 bytes");
    Shut(true);
  }
  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = default;
  ~Buffer() {
    if (!memory_.empty()) Shut(false);
  }
  uint8_t* data() { return memory_.data() + at_; }
  const uint8_t* data() const { return memory_.data() + at_; }
  size_t size() const { return bytes_; }
  template <typename E>
  E* As() {
    return reinterpret_cast<E*>(data());
  }
  bool GuardsHold() {
    Shut(false);
    for (size_t i = 0; i < memory_.size(); i++) {
      if ((i < at_ || i >= at_ + bytes_) && memory_[i] != kPoison) return false;
    }
    return true;
  }
  bool Untouched() const {
    for (size_t i = 0; i < bytes_; i++) {
      if (data()[i] != kPoison) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr uint8_t kPoison = 0xa5;
  void Shut([[maybe_unused]] bool shut) {
#if defined(__SANITIZE_ADDRESS__)
    uint8_t* const after = data() + bytes_;
    for (auto [from, to] : {std::pair{memory_.data(), data()}, std::pair{after, memory_.data() + memory_.size()}}) {
      if (shut) ASAN_POISON_MEMORY_REGION(from, to - from);
      else ASAN_UNPOISON_MEMORY_REGION(from, to - from);
    }
#endif
  }
  size_t bytes_;
  std::vector<uint8_t> memory_;
  size_t at_;
};

/** What elements are made of: ordinary numbers, or many of those that are easily got wrong. */
enum class Values { kOrdinary, kSpecial };

template <typename T>
float Draw(Random& random, Values values) {
  if (values == Values::kSpecial) {
    switch (random.Below(8)) {
      case 0: return 0.0f;
      case 1:
      case 2: return -0.0f;
      case 3: return random.OneIn(8) ? std::numeric_limits<float>::infinity() : 1.0f;
      case 4: return random.OneIn(8) ? -std::numeric_limits<float>::infinity() : -1.0f;
      case 5: return random.OneIn(8) ? std::nanf("") : 0x1p24f;
      case 6: return random.OneIn(2) ? 0x1p-140f : -0x1p24f;
      default: break;
    }
  }
  return random.Normal() * std::exp2(static_cast<float>(random.Between(-3, 3)));
}

/** Random elements; of special ones, some have all bits set. */
template <typename T>
Buffer Elements(Random& random, int64_t count, Values values, size_t offset = 0) {
  using Bits = typename T::Bits;
  Buffer buffer(count * sizeof(Bits), offset);
  for (int64_t i = 0; i < count; i++) {
    const bool ones = values == Values::kSpecial && random.OneIn(16);
    if constexpr (std::is_same_v<T, Word>) buffer.As<Bits>()[i] = ones ? ~Bits{0} : random.Bits();
    else buffer.As<Bits>()[i] = ones ? static_cast<Bits>(~Bits{0}) : T::Round(Draw<T>(random, values));
  }
  return buffer;
}

/** The workspaces of a group of ranks. */
class Group {
 public:
  Group(int ranks, Sizes sizes, bool multicast = false) : ranks_(ranks), sizes_(sizes), told_(ranks), states_(ranks) {
    for (int r = 0; r < ranks; r++) {
      memory_.emplace_back(static_cast<std::byte*>(std::aligned_alloc(128, WorkspaceBytes(sizes))), &std::free);
    }
    if (multicast) {
      void* const at = mmap(nullptr, WorkspaceBytes(sizes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (at == MAP_FAILED) Wrong("no addresses for a multicast");
      multicast_ = {static_cast<std::byte*>(at), WorkspaceBytes(sizes), {}, static_cast<size_t>(ranks)};
      for (int r = 0; r < ranks; r++) multicast_.memory[r] = memory_[r].get();
      emulation::TheMulticasts().Set(multicast_);
    }
    Reset();
  }
  Group(const Group&) = delete;
  ~Group() {
    if (!multicast_.at) return;
    flights.clear();
    emulation::TheMulticasts().Remove(multicast_.at);
    munmap(multicast_.at, multicast_.bytes);
  }
  void Reset() {
    flights.clear();
    for (auto& memory : memory_) {
      std::memset(memory.get(), 0, LamportAt(sizes_));
      std::memset(memory.get() + LamportAt(sizes_), 0xff, WorkspaceBytes(sizes_) - LamportAt(sizes_));
    }
    for (auto& told : told_) told = 0;
    for (auto& state : states_) state = {};
  }
  Peers PeersOf(int rank, uint64_t limit = uint64_t{1} << 60) const {
    Peers peers{{}, rank, ranks_, sizes_, limit, &told_[rank], &states_[rank], multicast_.at};
    for (int r = 0; r < ranks_; r++) peers.memory[r] = memory_[r].get();
    return peers;
  }
  /** Which the host is told as well. */
  uint32_t StatusOf(int rank) const {
    const uint32_t status = states_[rank].status;
    if ((told_[rank] == 0) != (status == 0) || (told_[rank] & ~status) != 0) Wrong("told %x of status %x", told_[rank], status);
    return status;
  }
  void Alarm(int rank) const { StoreRelaxed(PeersOf(rank).Alarm(rank), kAborted); }
  int ranks() const { return ranks_; }

 private:
  int ranks_;
  Sizes sizes_;
  std::vector<std::unique_ptr<std::byte, decltype(&std::free)>> memory_;
  emulation::Multicast multicast_{};
  mutable std::vector<uint32_t> told_;
  mutable std::vector<State> states_;
};

/** Rank r's operand, or, shared, all ranks'. */
inline Operands OperandsOf(std::vector<Buffer>& in, size_t skip, int r, bool shared) {
  Operands operands{{}, shared};
  for (size_t i = 0; i < in.size(); i++) {
    if (shared || static_cast<int>(i) == r) operands.of[i] = in[i].data() + skip;
  }
  return operands;
}

/** f(Algorithm as a constant), for one that is known at run time. */
template <typename F>
void WithWay(Algorithm way, F f) {
  switch (way) {
    case Algorithm::kOneShot: return f(std::integral_constant<Algorithm, Algorithm::kOneShot>{});
    case Algorithm::kTwoShot: return f(std::integral_constant<Algorithm, Algorithm::kTwoShot>{});
    case Algorithm::kLamport: return f(std::integral_constant<Algorithm, Algorithm::kLamport>{});
  }
}

template <typename T>
void LaunchSum(emulation::Machine& machine, Algorithm way, unsigned blocks, unsigned threads, const SumArgs& args) {
  WithWay(way, [&](auto known) {
    machine.Launch(args.peers.rank, blocks, threads, [args] { AllReduce<T, kMaxRanks, decltype(known)::value>(args); });
  });
}

/** Not by packets. */
template <typename T>
void LaunchJoin(emulation::Machine& machine, Algorithm way, unsigned blocks, unsigned threads, const JoinArgs& args) {
  const auto launch = [&](auto known) {
    machine.Launch(args.all.peers.rank, blocks, threads, [args] { AllJoin<T, kMaxRanks, decltype(known)::value>(args); });
  };
  if (way == Algorithm::kOneShot) launch(std::integral_constant<Algorithm, Algorithm::kOneShot>{});
  else launch(std::integral_constant<Algorithm, Algorithm::kTwoShot>{});
}

template <typename T>
void LaunchNorm(emulation::Machine& machine, Algorithm way, unsigned blocks, const NormArgs& args) {
  WithWay(way, [&](auto known) {
    const auto launch = [&](auto quantised) {
      machine.Launch(args.peers.rank, blocks, RowThreads(args.n, sizeof(typename T::Bits)),
                     [args] { AllReduceNorm<T, kMaxRanks, decltype(known)::value, decltype(quantised)::value>(args); });
    };
    if (kFewKernels || args.quant.quant != Quant::kNone || args.pre_gamma != nullptr) launch(std::true_type{});
    else launch(std::false_type{});
  });
}

constexpr Algorithm kWays[] = {Algorithm::kOneShot, Algorithm::kTwoShot, Algorithm::kLamport};

/** Half a step of T at `value`, and what float32 arithmetic may add. */
template <typename T>
double Tolerance(double value) {
  const double half = std::is_same_v<T, Float32> ? 0x1p-24 : std::is_same_v<T, Bfloat16> ? 0x1p-8 : 0x1p-11;
  const double least = std::is_same_v<T, Float16> ? 0x1p-25 : 0x1p-149;
  return std::max(std::fabs(value) * (half * 1.001 + 4e-6), least);
}

/** f(T{}) for each element type. */
template <typename F>
void EachType(F f) {
  f(Bfloat16{});
  if constexpr (!kFewKernels) {
    f(Float32{});
    f(Float16{});
  }
}

}  // namespace test
