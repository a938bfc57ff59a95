// The machine of the emulation: streams of kernels, whose threads are fibers that take turns in an order made of a seed.
#pragma once
#include <functional>
#include <iterator>
#include <memory>
#include <vector>

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
};
inline Planted planted;

enum class State : uint8_t { kReady, kAtBarrier, kAtShuffle, kDone };

struct Block;
struct Stream;

struct Thread {
  static void Entry();
  Thread() : fiber(Entry) {}
  Fiber fiber;
  Block* block = nullptr;
  unsigned index = 0;
  /** Its warp's threads. */
  Thread* warp[32] = {};
  State state = State::kDone;
  int barriers = 0;
  int vote = 0;
  float exchanged = 0;
};

struct Launch {
  unsigned blocks, threads;
  std::function<void()> kernel;
};

struct Block {
  Stream* stream = nullptr;
  const Launch* launch = nullptr;
  unsigned index = 0;
  /** As many as the launch has, one after another. */
  const std::unique_ptr<Thread>* threads = nullptr;
  unsigned ended = 0;
  unsigned at_barrier = 0;
  unsigned round = 0;
  int votes[2] = {0, 0};
  unsigned at_shuffle[32] = {};
  float* floats = nullptr;
  /** Addresses for `Acquire` and `Release`: of barriers in turn. */
  char order[2] = {0, 0};
};

/** Threads that no machine uses: to make one takes long under a sanitizer. */
inline std::vector<std::unique_ptr<Thread>> idle;

/** Kernels of one rank, in order. */
struct Stream {
  std::vector<Launch> queue;
  size_t begun = 0;
  unsigned unfinished = 0;
  std::vector<Block> blocks;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Thread*> ready;
  std::vector<float> floats = std::vector<float>(kMostBlocks * kFloats);
  /** Addresses for `Acquire` and `Release`: what the kernels before have done, in turn. */
  char order[2] = {0, 0};

  static constexpr unsigned kMostBlocks = 64;
  static constexpr unsigned kFloats = rankmesh::cuda::kBlockFloats;
};

class Machine {
 public:
  Machine(int ranks, uint32_t seed) : streams_(ranks), random_(seed) {}
  Machine(const Machine&) = delete;
  ~Machine() {
    for (Stream& stream : streams_) std::move(stream.threads.begin(), stream.threads.end(), std::back_inserter(idle));
  }

  /** Adds a kernel to a rank's stream; arguments are copied. */
  void Launch(int rank, unsigned blocks, unsigned threads, std::function<void()> kernel) {
    if (blocks > Stream::kMostBlocks || threads % 32 != 0) Fail("more blocks than are emulated, or warps that are not whole");
    streams_[rank].queue.push_back({blocks, threads, std::move(kernel)});
  }

  /** Runs all that was launched. `meanwhile` is called now and then, as the host would act beside the devices. */
  void Run(const std::function<void()>& meanwhile = {});

  /** Nanoseconds of emulated time. */
  EMULATION_UNSEEN uint64_t now() const { return steps_ * kStep; }
  EMULATION_UNSEEN uint32_t Random() {
    uint32_t word = random_ += 0x9e3779b9u;
    word = (word ^ (word >> 16)) * 0x85ebca6bu;
    word = (word ^ (word >> 13)) * 0xc2b2ae35u;
    return word ^ (word >> 16);
  }

  Fiber host;
  Thread* current = nullptr;

 private:
  static constexpr uint64_t kStep = 50;
  /** Most steps that some ranks do while the others stand still, mostly and at times. */
  static constexpr uint32_t kSpell = 256;
  static constexpr uint32_t kLongSpell = 1 << 14;
  /** Steps of a run, more than any test needs. */
  static constexpr uint64_t kMost = 400'000'000;

  bool Advance(Stream& stream);
  void Start(Stream& stream);
  void Settle(Stream& stream, Thread& thread);
  EMULATION_UNSEEN void Enter(Thread& thread) {
    const Block& block = *thread.block;
    current = &thread;
    threadIdx.x = thread.index;
    blockIdx.x = block.index;
    blockDim.x = block.launch->threads;
    gridDim.x = block.launch->blocks;
    thread.state = State::kReady;
    host.SwitchTo(thread.fiber);
  }
  uint32_t Below(size_t count) { return static_cast<uint32_t>((uint64_t{Random()} * count) >> 32); }

  std::vector<Stream> streams_;
  uint32_t random_;
  uint64_t steps_ = 0;
};
inline Machine* machine = nullptr;

/** From a thread to the machine, until it is its turn again. */
EMULATION_UNSEEN inline void Leave(State state) {
  Thread& self = *machine->current;
  self.state = state;
  self.fiber.SwitchTo(machine->host);
}

EMULATION_UNSEEN inline Block& CurrentBlock() { return *machine->current->block; }
EMULATION_UNSEEN inline const std::function<void()>& CurrentKernel() { return CurrentBlock().launch->kernel; }
/** Where a kernel finds what was before it, and leaves what it has done: 0 and 1. */
EMULATION_UNSEEN inline void* OrderOf(int end) {
  Stream& stream = *CurrentBlock().stream;
  return &stream.order[(stream.begun + end) & 1];
}

inline void Thread::Entry() {
  machine->current->fiber.Begin();
  for (;;) {
    Acquire(OrderOf(0));
    CurrentKernel()();
    Release(OrderOf(1));
    Leave(State::kDone);
  }
}

/** Shared memory that nobody has written to yet. */
EMULATION_UNSEEN inline void Poison(float* at, unsigned count) {
  for (unsigned i = 0; i < count; i++) at[i] = __builtin_nanf("");
}

/** The stream's next kernel, `queue[begun]`. */
inline void Machine::Start(Stream& stream) {
  const auto& launch = stream.queue[stream.begun];
  Poison(stream.floats.data(), launch.blocks * Stream::kFloats);
  stream.unfinished = launch.blocks * launch.threads;
  while (stream.threads.size() < stream.unfinished) {
    if (idle.empty()) idle.push_back(std::make_unique<Thread>());
    stream.threads.push_back(std::move(idle.back()));
    idle.pop_back();
  }
  stream.blocks.assign(launch.blocks, Block{});
  for (unsigned b = 0; b < launch.blocks; b++) {
    Block& block = stream.blocks[b];
    block.stream = &stream;
    block.launch = &launch;
    block.index = b;
    block.threads = stream.threads.data() + b * launch.threads;
    block.floats = stream.floats.data() + b * Stream::kFloats;
    for (unsigned t = 0; t < launch.threads; t++) {
      Thread& thread = *block.threads[t];
      thread.block = &block;
      thread.index = t;
      thread.barriers = 0;
      for (unsigned lane = 0; lane < 32; lane++) thread.warp[lane] = block.threads[t / 32 * 32 + lane].get();
      stream.ready.push_back(&thread);
    }
  }
}

/** Whether the stream has something to run. */
inline bool Machine::Advance(Stream& stream) {
  if (stream.unfinished == 0 && !stream.blocks.empty()) {
    stream.blocks.clear();
    stream.begun++;
  }
  if (stream.begun == stream.queue.size()) return false;
  if (stream.blocks.empty()) Start(stream);
  return true;
}

/** After a thread has left: who goes on now. */
inline void Machine::Settle(Stream& stream, Thread& thread) {
  Block& block = *thread.block;
  if (thread.state == State::kDone) {
    block.ended++;
    stream.unfinished--;
    if (block.at_barrier) Fail("a thread ends while others of its block wait at a barrier");
  } else if (thread.state == State::kAtBarrier) {
    block.votes[block.round & 1] |= thread.vote;
    if (block.ended) Fail("a barrier that a thread which has ended will not reach");
    if (++block.at_barrier < block.launch->threads) return;
    block.at_barrier = 0;
    block.round++;
    block.votes[block.round & 1] = 0;
    for (unsigned t = 0; t < block.launch->threads; t++) stream.ready.push_back(block.threads[t].get());
  } else if (thread.state == State::kAtShuffle) {
    const unsigned warp = thread.index / 32;
    if (++block.at_shuffle[warp] < 32) return;
    block.at_shuffle[warp] = 0;
    for (unsigned t = 32 * warp; t < 32 * warp + 32; t++) {
      if (block.threads[t]->state != State::kAtShuffle) Fail("lanes of a warp are at a shuffle and at a barrier");
      stream.ready.push_back(block.threads[t].get());
    }
  }
}

inline void Machine::Run(const std::function<void()>& meanwhile) {
  machine = this;
  for (Stream& stream : streams_) Release(&stream.order[stream.begun & 1]);
  uint64_t until = 0;
  const uint64_t end = steps_ + kMost;
  std::vector<Stream*> busy, lively;
  for (bool settled = false;;) {
    if (!settled || steps_ >= until) {
      busy.clear();
      lively.clear();
      for (Stream& stream : streams_) {
        if (Advance(stream)) busy.push_back(&stream);
      }
      if (busy.empty()) break;
      for (Stream* stream : busy) {
        if (Random() & 1) lively.push_back(stream);
      }
      if (lively.empty()) lively.push_back(busy[Below(busy.size())]);
      until = steps_ + 1 + Below(Below(8) == 0 ? kLongSpell : kSpell);
      settled = true;
      if (meanwhile) meanwhile();
    }
    Stream& stream = *lively[Below(lively.size())];
    if (stream.ready.empty()) Fail("all threads of a kernel wait for each other");
    const uint32_t at = Below(stream.ready.size());
    Thread& thread = *stream.ready[at];
    steps_++;
    if (steps_ > end) Fail("a kernel does not end");
    Enter(thread);
    if (thread.state == State::kReady) continue;
    stream.ready[at] = stream.ready.back();
    stream.ready.pop_back();
    Settle(stream, thread);
    if (stream.unfinished == 0) settled = false;
  }
  current = nullptr;
  for (Stream& stream : streams_) {
    Acquire(&stream.order[stream.begun & 1]);
    stream.queue.clear();
    stream.begun = 0;
  }
}

EMULATION_UNSEEN inline int Barrier(int vote) {
  Thread& self = *machine->current;
  Block& block = *self.block;
  if (++self.barriers == planted.barrier) return vote;
  const unsigned round = block.round & 1;
  self.vote = vote;
  Release(&block.order[round]);
  Leave(State::kAtBarrier);
  Acquire(&block.order[round]);
  return block.votes[round];
}

EMULATION_UNSEEN inline float Shuffled(float value, unsigned other) {
  Thread& self = *machine->current;
  self.exchanged = value;
  Leave(State::kAtShuffle);
  const float result = self.warp[(self.index ^ other) % 32]->exchanged;
  Leave(State::kAtShuffle);  // nobody writes `exchanged` again before all have read
  return result;
}

/** Now and then others run first. */
EMULATION_UNSEEN inline void Perhaps() {
  if (machine->current && (machine->Random() & 7) == 0) Leave(State::kReady);
}

}  // namespace emulation
