// The machine of the emulation: streams of kernels, whose threads are fibers that take turns in an order made of a seed.
#pragma once
#include <algorithm>
#include <iterator>
#include <memory>
#include <vector>

#include "thread.h"

namespace emulation {

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
  /** What it gives to its warp, in turn: a lane may be one exchange ahead of the slowest, not two. */
  uint64_t exchanged[2] = {};
  unsigned exchanges = 0;
};

struct Block {
  Stream* stream = nullptr;
  const Launch* launch = nullptr;
  Index3 index;
  /** As many as the launch has, one after another. */
  const std::unique_ptr<Thread>* threads = nullptr;
  unsigned ended = 0;
  unsigned at_barrier = 0;
  unsigned round = 0;
  int votes[2] = {0, 0};
  unsigned at_shuffle[32] = {};
  float* floats = nullptr;
  GuardedBytes shared;
  std::byte* bytes = nullptr;
  /** Addresses for `Acquire` and `Release`: of barriers in turn. */
  char order[2] = {0, 0};
  char warp_order[32][2] = {};
};

/** Threads that no machine uses: to make one takes long under a sanitizer. */
inline std::vector<std::unique_ptr<Thread>> idle;

/** Kernels of one rank, in order. */
struct Stream {
  std::vector<Launch> queue;
  size_t begun = 0;
  /** Blocks of the kernel that have begun, and threads of those that have not ended. */
  uint64_t started = 0;
  uint64_t unfinished = 0;
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
  Machine(int ranks, uint32_t seed) : random(seed), streams_(ranks) {}
  Machine(const Machine&) = delete;
  ~Machine() {
    for (Stream& stream : streams_) std::move(stream.threads.begin(), stream.threads.end(), std::back_inserter(idle));
  }

  /** Adds a kernel to a rank's stream; arguments are copied. */
  void Launch(int rank, unsigned blocks, unsigned threads, std::function<void()> kernel, size_t shared_bytes = 0) {
    Launch(rank, Index3{blocks, 1, 1}, threads, std::move(kernel), shared_bytes);
  }
  void Launch(int rank, Index3 grid, unsigned threads, std::function<void()> kernel, size_t shared_bytes = 0) {
    if (threads == 0 || threads > 1024 || threads % 32 != 0) Fail("blocks that are too large or empty, or warps that are not whole");
    streams_[rank].queue.push_back({grid, threads, shared_bytes, std::move(kernel)});
  }

  /** Runs all that was launched. `meanwhile` is called now and then, as the host would act beside the devices. */
  void Run(const std::function<void()>& meanwhile = {});

  /** Nanoseconds of emulated time. */
  EMULATION_UNSEEN uint64_t now() const { return steps_ * kStep; }
  Randomness random;
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
    blockIdx = block.index;
    blockDim.x = block.launch->threads;
    gridDim = block.launch->grid;
    thread.state = State::kReady;
    host.SwitchTo(thread.fiber);
  }
  std::vector<Stream> streams_;
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

/** The stream's next kernel, `queue[begun]`, or its next blocks: as many as are there at once. */
inline void Machine::Start(Stream& stream) {
  const auto& launch = stream.queue[stream.begun];
  const auto blocks = static_cast<unsigned>(std::min<uint64_t>(launch.Blocks() - stream.started, Stream::kMostBlocks));
  Poison(stream.floats.data(), blocks * Stream::kFloats * sizeof(float));
  stream.unfinished = uint64_t{blocks} * launch.threads;
  while (stream.threads.size() < stream.unfinished) {
    if (idle.empty()) idle.push_back(std::make_unique<Thread>());
    stream.threads.push_back(std::move(idle.back()));
    idle.pop_back();
  }
  stream.blocks.clear();
  stream.blocks.resize(blocks);
  for (unsigned b = 0; b < blocks; b++) {
    Block& block = stream.blocks[b];
    block.stream = &stream;
    block.launch = &launch;
    block.index = launch.Place(stream.started + b);
    block.threads = stream.threads.data() + b * launch.threads;
    block.floats = stream.floats.data() + b * Stream::kFloats;
    if (launch.shared_bytes) Poison(block.bytes = block.shared.Take(launch.shared_bytes), launch.shared_bytes);
    for (unsigned t = 0; t < launch.threads; t++) {
      Thread& thread = *block.threads[t];
      thread.block = &block;
      thread.index = t;
      thread.barriers = 0;
      thread.exchanges = 0;
      for (unsigned lane = 0; lane < 32; lane++) thread.warp[lane] = block.threads[t / 32 * 32 + lane].get();
      stream.ready.push_back(&thread);
    }
  }
  stream.started += blocks;
}

/** Whether the stream has something to run. */
inline bool Machine::Advance(Stream& stream) {
  if (stream.unfinished == 0 && !stream.blocks.empty()) {
    stream.blocks.clear();
    if (stream.started == stream.queue[stream.begun].Blocks()) {
      stream.begun++;
      stream.started = 0;
    }
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
    block.votes[block.round & 1] += thread.vote;
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
        if (random() & 1) lively.push_back(stream);
      }
      if (lively.empty()) lively.push_back(busy[random.Below(busy.size())]);
      until = steps_ + 1 + random.Below(random.Below(8) == 0 ? kLongSpell : kSpell);
      settled = true;
      if (meanwhile) meanwhile();
    }
    Stream& stream = *lively[random.Below(lively.size())];
    if (stream.ready.empty()) Fail("all threads of a kernel wait for each other");
    const uint32_t at = random.Below(stream.ready.size());
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

/** How many threads of the block voted. */
EMULATION_UNSEEN inline int Barrier(bool vote) {
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

/** Gives the warp a value, and meets it there; what lane i has given is `values[i]->exchanged[turn]`. */
struct Exchange {
  EMULATION_UNSEEN explicit Exchange(uint64_t value) : self(*machine->current), turn(self.exchanges++ & 1) {
    self.exchanged[turn] = value;
    Leave(State::kAtShuffle);
  }
  EMULATION_UNSEEN uint64_t Of(unsigned lane) const { return self.warp[lane % 32]->exchanged[turn]; }
  Thread& self;
  const unsigned turn;
};

EMULATION_UNSEEN inline void WarpBarrier() {
  Thread& self = *machine->current;
  char* const order = &self.block->warp_order[self.index / 32][self.exchanges & 1];
  Release(order);
  Exchange{0};
  Acquire(order);
}

/** Others run first. */
inline void Yield() { Leave(State::kReady); }
/** Says that others may be waiting for what this thread has just written; here they look anyway. */
inline void Moved() {}
EMULATION_UNSEEN inline uint32_t Random() { return machine->random(); }
EMULATION_UNSEEN inline uint64_t Now() { return machine->now(); }
EMULATION_UNSEEN inline float* BlockFloats() { return CurrentBlock().floats; }
EMULATION_UNSEEN inline std::byte* SharedBytes() { return CurrentBlock().bytes; }

/** Now and then others run first. */
EMULATION_UNSEEN inline void Perhaps() {
  if (machine->current && (machine->random() & 7) == 0) Leave(State::kReady);
}

}  // namespace emulation
