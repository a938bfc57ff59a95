// The machine for kernels of many blocks: a block's threads run one after another, each to its next barrier, other blocks when they wait.
//
// A fiber goes from thread to thread until one of them has to wait; kernels without barriers are loops. In which order blocks, warps and
// lanes take their turns is made of the seed.
#pragma once
#include <time.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "thread.h"

namespace emulation {

struct Block;

struct Thread {
  /** Null before it has begun. */
  Fiber* fiber;
  unsigned index;
  unsigned barriers;
  unsigned exchanges;
};

/** What runs the threads: the fibers of one operating-system thread, and who is running. */
struct Host {
  Fiber fiber;
  Thread* thread = nullptr;
  Block* block = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  Randomness random{1};
  /** Why the kernel that runs cannot go on. */
  std::string broken;
};
inline Host* host = nullptr;

/** Blocks that are there at once; the next ones begin when they end. */
constexpr size_t kMostBlocks = 256;
constexpr unsigned kMostThreads = 1024;

/** Ends the kernel that runs; on one of its threads it does not return. */
inline void Break(const char* what) {
  if (host->broken.empty()) host->broken = what;
  if (!host->thread) return;
  Fiber& self = *host->thread->fiber;
  host->thread = nullptr;
  self.SwitchTo(host->fiber);
}

struct Block {
  const Launch* launch = nullptr;
  Index3 index;
  unsigned count = 0;
  /** Threads that have begun, in an order of their own. */
  unsigned begun = 0;
  unsigned ended = 0;
  unsigned first_warp = 0, lanes = 0;
  unsigned at_barrier = 0;
  unsigned round = 0;
  int votes[2] = {0, 0};
  unsigned at_shuffle[32] = {};
  /** Something else has happened than that threads have let others go first: since the last look, and in the last `Run`. */
  bool moved = false;
  bool advanced = false;
  std::vector<Thread> threads = std::vector<Thread>(kMostThreads);
  /** What lanes give to each other, in turn: a lane may be one exchange ahead of the slowest, not two. */
  std::vector<uint64_t> exchanged[2] = {std::vector<uint64_t>(kMostThreads), std::vector<uint64_t>(kMostThreads)};
  /** Those that can go on, the last one first, and those that let others go first. */
  std::vector<Thread*> ready, yielded;
  GuardedBytes shared;
  std::byte* bytes = nullptr;
  float floats[rankmesh::cuda::kBlockFloats];

  void Begin(const Launch& of, uint64_t number) {
    launch = &of;
    index = of.Place(number);
    count = of.threads;
    begun = ended = at_barrier = round = 0;
    votes[0] = votes[1] = 0;
    std::fill(std::begin(at_shuffle), std::end(at_shuffle), 0u);
    first_warp = host->random.Below((count + 31) / 32);
    lanes = count % 32 == 0 ? host->random() % 32 : 0;
    ready.clear();
    yielded.clear();
    Poison(floats, sizeof floats);
    bytes = shared.Take(of.shared_bytes);
    Poison(bytes, of.shared_bytes);
  }

  /** The thread that begins next. */
  Thread& Next() {
    const unsigned warps = (count + 31) / 32;
    unsigned at = begun++;
    if (count % 32 == 0) at = (at / 32 + first_warp) % warps * 32 + (at % 32 ^ lanes);
    Thread& thread = threads[at];
    thread = {nullptr, at, 0, 0};
    return thread;
  }

  void Enter(Fiber& from, Thread& thread) {
    host->thread = &thread;
    threadIdx.x = thread.index;
    from.SwitchTo(*thread.fiber);
  }

  /** On the fiber of a thread that cannot go on: somebody else's turn. Returns where it may. */
  void Leave(Fiber& self);
  /** Every thread of `from` to `to` but this one may go on. */
  void Wake(unsigned from, unsigned to, const Thread& self) {
    for (unsigned t = to; t-- > from;) {
      if (t != self.index) ready.push_back(&threads[t]);
    }
    moved = true;
  }
  unsigned WarpSize(unsigned warp) const { return std::min(32u, count - 32 * warp); }

  /** Runs until all have ended (true), or all that can go on have let others go first. */
  bool Run();
};

/** What a fiber does: one thread after another. */
inline void Live() {
  host->thread->fiber->Begin();
  for (;;) {
    Block& block = *host->block;
    block.launch->kernel();
    Thread& self = *host->thread;
    Fiber& fiber = *self.fiber;
    block.ended++;
    block.moved = true;
    if (block.at_barrier) Break("a thread ends while others of its block wait at a barrier");
    self.fiber = nullptr;
    if (block.ready.empty() && block.begun < block.count) {
      Thread& next = block.Next();
      next.fiber = &fiber;
      host->thread = &next;
      threadIdx.x = next.index;
      continue;
    }
    host->idle.push_back(&fiber);
    block.Leave(fiber);  // somebody who takes the fiber comes back here
  }
}

inline Fiber* FreeFiber() {
  if (host->idle.empty()) {
    host->fibers.push_back(std::make_unique<Fiber>(Live));
    host->idle.push_back(host->fibers.back().get());
  }
  Fiber* const fiber = host->idle.back();
  host->idle.pop_back();
  return fiber;
}

inline void Block::Leave(Fiber& self) {
  if (!ready.empty()) {
    Thread& next = *ready.back();
    ready.pop_back();
    return Enter(self, next);
  }
  if (begun < count) {
    Thread& next = Next();
    next.fiber = FreeFiber();
    return Enter(self, next);
  }
  host->thread = nullptr;
  self.SwitchTo(host->fiber);
}

inline bool Block::Run() {
  host->block = this;
  blockIdx = index;
  blockDim = {count, 1, 1};
  gridDim = launch->grid;
  advanced = false;
  ready.swap(yielded);
  for (;;) {
    moved = false;
    if (!ready.empty()) {
      Thread& next = *ready.back();
      ready.pop_back();
      Enter(host->fiber, next);
    } else if (begun < count) {
      Thread& next = Next();
      next.fiber = FreeFiber();
      Enter(host->fiber, next);
    }
    advanced = advanced || moved;
    if (!host->broken.empty() || ended == count) return true;
    if (ready.empty() && begun == count) {
      if (yielded.empty()) {
        Break("all threads of a block wait for each other");
        return true;
      }
      if (!moved) return false;
      ready.swap(yielded);
    }
  }
}

/** A kernel that runs. */
class Grid {
 public:
  explicit Grid(Launch launch) : launch_(std::move(launch)) {
    if (launch_.threads == 0 || launch_.threads > kMostThreads) Break("blocks that are too large or empty");
  }
  /**
   * Does a part of the work, with no more blocks at once than `most`. True once all of it is done or `host->broken` says why it never will
   * be.
   */
  bool Step(size_t most = kMostBlocks) {
    moved_ = false;
    const size_t resident = blocks_.size();
    for (size_t i = 0; i < blocks_.size();) {
      if (!RunOne(i, i)) return true;
    }
    for (size_t more = kSlice; more > 0 && started_ < launch_.Blocks() && blocks_.size() < std::min(most, kMostBlocks); more--) {
      if (pool_.empty()) pool_.push_back(std::make_unique<Block>());
      blocks_.push_back(std::move(pool_.back()));
      pool_.pop_back();
      blocks_.back()->Begin(launch_, started_++);
      size_t at = blocks_.size() - 1;
      if (!RunOne(at, at)) return true;
      moved_ = true;
    }
    if (resident > blocks_.size()) moved_ = true;
    return blocks_.empty() && started_ == launch_.Blocks();
  }
  /** Whether the last step has done more than wait. */
  bool moved() const { return moved_; }
  /** Blocks that have begun and not ended. */
  size_t resident() const { return blocks_.size(); }
  /** Its threads never go on. */
  void Abandon() {
    host->thread = nullptr;
    for (auto& block : blocks_) {
      for (unsigned t = 0; t < block->count; t++) {
        Fiber*& fiber = block->threads[t].fiber;
        if (!fiber) continue;
        fiber->Prepare(Live);
        host->idle.push_back(std::exchange(fiber, nullptr));
      }
      pool_.push_back(std::move(block));
    }
    blocks_.clear();
    started_ = launch_.Blocks();
  }

 private:
  /** Blocks that begin in one step. */
  static constexpr size_t kSlice = 64;

  /** False where the kernel is broken. `next` is the place of the block behind it. */
  bool RunOne(size_t at, size_t& next) {
    const bool ended = blocks_[at]->Run();
    if (!host->broken.empty()) {
      Abandon();
      return false;
    }
    moved_ = moved_ || blocks_[at]->advanced;
    next = at + 1;
    if (!ended) return true;
    pool_.push_back(std::move(blocks_[at]));
    blocks_.erase(blocks_.begin() + static_cast<ptrdiff_t>(at));
    next = at;
    return true;
  }

  Launch launch_;
  uint64_t started_ = 0;
  bool moved_ = false;
  std::vector<std::unique_ptr<Block>> blocks_;
  /** Those that no kernel uses; never destroyed, since threads outlive static objects. */
  inline static std::vector<std::unique_ptr<Block>>& pool_ = *new std::vector<std::unique_ptr<Block>>;
};

/** How many threads of the block voted. */
inline int Barrier(bool vote) {
  Thread& self = *host->thread;
  Block& block = *host->block;
  if (static_cast<int>(++self.barriers) == planted.barrier) return vote;
  const unsigned round = block.round & 1;
  block.votes[round] += vote;
  if (block.ended) Break("a barrier that a thread which has ended will not reach");
  if (++block.at_barrier < block.count) {
    block.Leave(*self.fiber);
    return block.votes[round];
  }
  block.at_barrier = 0;
  block.round++;
  block.votes[block.round & 1] = 0;
  block.Wake(0, block.count, self);
  return block.votes[round];
}

/** Gives the warp a value, and meets it there. */
struct Exchange {
  explicit Exchange(uint64_t value) {
    Thread& self = *host->thread;
    Block& block = *host->block;
    const unsigned warp = self.index / 32;
    uint64_t* const of = block.exchanged[self.exchanges++ & 1].data();
    values = of + 32 * warp;
    of[self.index] = value;
    if (++block.at_shuffle[warp] < block.WarpSize(warp)) {
      block.Leave(*self.fiber);
      return;
    }
    block.at_shuffle[warp] = 0;
    block.Wake(32 * warp, 32 * warp + block.WarpSize(warp), self);
  }
  uint64_t Of(unsigned lane) const { return values[lane % 32]; }
  const uint64_t* values;
};

inline void WarpBarrier() { Exchange{0}; }

/** Others run first. */
inline void Yield() {
  Thread& self = *host->thread;
  host->block->yielded.push_back(&self);
  host->block->Leave(*self.fiber);
}

/** Others may be waiting for what this thread has just written. */
inline void Moved() {
  if (host && host->thread) host->block->moved = true;
}

inline uint32_t Random() { return host->random(); }
/** Now and then others run first. */
inline void Perhaps() {
  if (host && host->thread && (host->random() & 7) == 0) Yield();
}
inline float* BlockFloats() { return host->block->floats; }
inline std::byte* SharedBytes() { return host->block->bytes; }
inline uint64_t Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

/** Kernels of several ranks, each rank's in order, for tests; as the other machine of this name. */
class Machine {
 public:
  Machine(int ranks, uint32_t seed) : streams_(ranks) { host_.random = Randomness(seed); }
  void Launch(int rank, unsigned blocks, unsigned threads, std::function<void()> kernel, size_t shared_bytes = 0) {
    Launch(rank, Index3{blocks, 1, 1}, threads, std::move(kernel), shared_bytes);
  }
  void Launch(int rank, Index3 grid, unsigned threads, std::function<void()> kernel, size_t shared_bytes = 0) {
    streams_[rank].push_back({grid, threads, shared_bytes, std::move(kernel)});
  }

  /** Runs all that was launched. `meanwhile` is called now and then, as the host would act beside the devices. */
  void Run(const std::function<void()>& meanwhile = {}) {
    host = &host_;
    std::vector<std::unique_ptr<Grid>> running(streams_.size());
    for (;;) {
      std::vector<size_t> busy;
      for (size_t s = 0; s < streams_.size(); s++) {
        if (running[s] || !streams_[s].empty()) busy.push_back(s);
      }
      if (busy.empty()) break;
      const size_t s = busy[host_.random.Below(busy.size())];
      if (!running[s]) {
        running[s] = std::make_unique<Grid>(std::move(streams_[s].front()));
        streams_[s].pop_front();
      }
      if (running[s]->Step()) running[s].reset();
      if (!host_.broken.empty()) Fail(host_.broken.c_str());
      if (meanwhile) meanwhile();
    }
    host = nullptr;
  }
  uint64_t now() const { return Now(); }

 private:
  Host host_;
  std::vector<std::deque<emulation::Launch>> streams_;
};

}  // namespace emulation
