// Addresses whose stores reach several memories at once, as CUDA's multicasts have them. Nothing lies there itself, so that other accesses fault.
#pragma once
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace emulation {

struct Multicast {
  static constexpr size_t kMost = 64;
  std::byte* at;
  size_t bytes;
  /** One for each device; fewer are bound where some are null. */
  std::array<std::byte*, kMost> memory;
  size_t devices;
};

/** Read without a lock, which would put accesses of different threads in an order. */
class Multicasts {
 public:
  /** Adds one, or gives that at the same address other memory. */
  void Set(const Multicast& multicast) {
    Change([&](List& list) { list.push_back(multicast); }, multicast.at);
  }
  void Remove(const std::byte* at) {
    Change([](List&) {}, at);
  }
  /** What the address belongs to, all of it bound; null for none. */
  const Multicast* Find(const void* at) const {
    const List* const list = now_.load(std::memory_order_relaxed);
    if (!list) return nullptr;
    for (const Multicast& one : *list) {
      if (at < one.at || at >= one.at + one.bytes) continue;
      for (size_t i = 0; i < one.devices; i++) {
        if (!one.memory[i]) return nullptr;
      }
      return &one;
    }
    return nullptr;
  }
  /** Called for every store to several memories; null for nothing. */
  void (*stored)() = nullptr;

 private:
  using List = std::vector<Multicast>;
  template <typename F>
  void Change(F change, const std::byte* at) {
    const std::lock_guard lock(mutex_);
    auto list = lists_.empty() ? std::make_unique<List>() : std::make_unique<List>(*lists_.back());
    std::erase_if(*list, [at](const Multicast& one) { return one.at == at; });
    change(*list);
    now_.store(list.get(), std::memory_order_release);
    lists_.push_back(std::move(list));
  }
  std::mutex mutex_;
  std::atomic<const List*> now_ = nullptr;
  /** All that there were: some thread may look at one still. */
  std::vector<std::unique_ptr<const List>> lists_;
};
inline Multicasts& TheMulticasts() {
  static auto* const all = new Multicasts;  // used by threads that outlive static objects
  return *all;
}

}  // namespace emulation
