// Fibers: stacks of their own that one operating-system thread switches between. Thread and address sanitizers are told of every switch.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

// As gcc says it.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__)
#define __SANITIZE_THREAD__ 1
#endif
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void __tsan_destroy_fiber(void* fiber);
extern "C" void* __tsan_get_current_fiber();
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
#define EMULATION_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define EMULATION_UNSEEN
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

/** Says what is wrong with the program that runs, and ends it. */
[[noreturn]] inline void Fail(const char* what) {
  std::printf("emulation: %s\n", what);
  std::fflush(stdout);
  std::_Exit(3);
}

/** Orders, for ThreadSanitizer alone, what a fiber did before `Release(at)` ahead of what another does after `Acquire(at)`. */
inline void Release([[maybe_unused]] void* at) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(at);
#endif
}

inline void Acquire([[maybe_unused]] void* at) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(at);
#endif
}

#if defined(__x86_64__)
extern "C" void emulation_switch(void** save, void* to);
asm(R"(
.text
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
#endif

/** The one that runs `entry`, which never returns, or, made without it, the operating-system thread itself. */
class Fiber {
 public:
  explicit Fiber(void (*entry)() = nullptr) {
#if defined(__SANITIZE_THREAD__)
    tsan_ = entry ? __tsan_create_fiber(0) : __tsan_get_current_fiber();
#endif
    if (!entry) return;
    void* const memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) Fail("no memory for stacks");
    stack_ = static_cast<std::byte*>(memory);
    Prepare(entry);
  }
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    if (!stack_) return;
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(tsan_);
#endif
    munmap(stack_, kStack);
  }

  /** As new: what it was doing is forgotten. */
  void Prepare(void (*entry)()) {
#if defined(__x86_64__)
    // Stacks that end at unlike offsets share fewer lines of the cache.
    const size_t shift = reinterpret_cast<uintptr_t>(stack_) / kStack % 16 * 256;
    void** top = reinterpret_cast<void**>(stack_ + kStack - shift) - 1;
    *--top = reinterpret_cast<void*>(entry);
    pointer_ = top - 6;
#else
    getcontext(&context_);
    context_.uc_stack = {.ss_sp = stack_, .ss_flags = 0, .ss_size = kStack};
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  /** Goes on with `next`; returns when somebody switches back to this one, which is the one that runs. */
  EMULATION_UNSEEN void SwitchTo(Fiber& next) {
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(next.tsan_, kSwitch);
#endif
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    next.from_ = this;
    __sanitizer_start_switch_fiber(&fake, next.bottom_ ? next.bottom_ : next.stack_, next.bottom_ ? next.size_ : kStack);
#endif
#if defined(__x86_64__)
    emulation_switch(&pointer_, next.pointer_);
#else
    swapcontext(&context_, &next.context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &from_->bottom_, &from_->size_);
#endif
  }

  /** First in `entry`. */
  void Begin() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &from_->bottom_, &from_->size_);
#endif
  }

 private:
#if defined(EMULATION_SWIFT)
  /** Threads of one machine are ordered by their turns; only what it shares with other threads is looked at. */
  static constexpr unsigned kSwitch = 0;
#else
  /** A switch orders nothing. */
  static constexpr unsigned kSwitch = 1;
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kStack = 512 << 10;
#else
  static constexpr size_t kStack = 32 << 10;
#endif
  std::byte* stack_ = nullptr;
  void* pointer_ = nullptr;
#if !defined(__x86_64__)
  ucontext_t context_{};
#endif
#if defined(__SANITIZE_THREAD__)
  void* tsan_ = nullptr;
#endif
#if defined(__SANITIZE_ADDRESS__)
  Fiber* from_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
#endif
};

}  // namespace emulation
