// What both machines of the emulation know of CUDA's threads: their places, and what a test may have broken.
#pragma once
#include <cmath>
#include <functional>
#include <utility>

#include "fiber.h"

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
inline Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

/** What a test may have broken, to see that it is found. */
struct Planted {
  /** Barrier that the threads of a kernel pass without waiting: 1 for the first. */
  int barrier = 0;
  /** Flags carry no order with them. */
  bool relaxed = false;
  /** Waits for flags end before the flag is there. */
  bool hasty = false;
  /** Fences do not wait for stores to multicasts. */
  bool unfenced = false;
};
inline Planted planted;

/** One kernel as it was launched, its arguments inside. */
struct Launch {
  Index3 grid;
  unsigned threads;
  /** Of shared memory that the launch, not the kernel, sizes. */
  size_t shared_bytes;
  std::function<void()> kernel;
  uint64_t Blocks() const { return uint64_t{grid.x} * grid.y * grid.z; }
  Index3 Place(uint64_t block) const {
    return {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
            static_cast<unsigned>(block / grid.x / grid.y)};
  }
};

/** Numbers that look random, all of them made of the seed. */
class Randomness {
 public:
  explicit Randomness(uint32_t seed) : word_(seed) {}
  EMULATION_UNSEEN uint32_t operator()() {
    uint32_t word = word_ += 0x9e3779b9u;
    word = (word ^ (word >> 16)) * 0x85ebca6bu;
    word = (word ^ (word >> 13)) * 0xc2b2ae35u;
    return word ^ (word >> 16);
  }
  uint32_t Below(size_t count) { return static_cast<uint32_t>((uint64_t{(*this)()} * count) >> 32); }

 private:
  uint32_t word_;
};

/** Shared memory that nobody has written to yet. */
EMULATION_UNSEEN inline void Poison(void* at, size_t bytes) {
  auto* const floats = static_cast<float*>(at);
  for (size_t i = 0; i < bytes / sizeof(float); i++) floats[i] = __builtin_nanf("");
}

/** Bytes whose end nobody writes past: a page behind them is shut. */
class GuardedBytes {
 public:
  GuardedBytes() = default;
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes(GuardedBytes&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)), pages_(other.pages_) {}
  ~GuardedBytes() {
    if (memory_) munmap(memory_, pages_ + kPage);
  }
  /** As many as asked for, aligned to 16, ending at the shut page but for that; all that was here before is gone. */
  std::byte* Take(size_t bytes) {
    if (bytes > pages_ || !memory_) {
      if (memory_) munmap(memory_, pages_ + kPage);
      pages_ = (bytes + kPage) / kPage * kPage;
      void* const memory = mmap(nullptr, pages_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) Fail("no memory for shared memory");
      memory_ = static_cast<std::byte*>(memory);
      mprotect(memory_ + pages_, kPage, PROT_NONE);
    }
    return memory_ + pages_ - (bytes + 15) / 16 * 16;
  }

 private:
  static constexpr size_t kPage = 4096;
  std::byte* memory_ = nullptr;
  size_t pages_ = 0;
};

}  // namespace emulation
