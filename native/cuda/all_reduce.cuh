// out = x_0 + x_1 + ... + x_(ranks-1), the operands of all ranks, in three ways that give the same bits on every rank; or their product, minimum,
// maximum or mean.
//
// Contract: partials add in float32, ranks ascending, and the sum is rounded to the element type once, or, `rounded`, each sum of two is. In all ways a block works on a span
// of its own, alike on all ranks, and waits only for the same block of the others. Any count; memory of elements may lie anywhere, 16-byte
// aligned is faster. `out` may be this rank's operand. What joins ranks other than by a sum does so in the same order.
//
//   kOneShot   operands are copied to the workspace, ranks meet, each reads the others': one crossing, (ranks - 1) * size read.
//   kTwoShot   they meet, each adds its share of every span and writes it to all, they meet again: two crossings, 2 * size in all.
//   kLamport   operands are sent to all as packets that say of themselves that they have arrived: one crossing and nothing to meet for.
//
// Where there is a multicast, what goes to all ranks alike (packets, and the sums of shares) takes one store. It goes to the same places, and
// each rank adds up for itself as ever: the bits are the same. Packets say of themselves that they have arrived, word by word, so their
// stores need no order; sums are fenced before ranks meet.
//
// Operands in memory that all ranks can read need not be copied: `shared`. Ranks meet once more then where nothing else tells them that all
// have read, and `out` is other memory.
#pragma once
#include <type_traits>

#include "joining.cuh"
#include "signal.cuh"

namespace rankmesh::cuda {

/** What a word holds before it arrives: a NaN of every type, so no value is lost; who would send it sends another NaN. */
constexpr uint32_t kNothing = 0xffffffffu;

/** Ranks whose packets are on their way together, which takes registers; a constant, as is the most ranks that a kernel is for. */
template <int kMost>
inline constexpr int kAtOnce = kMost < 8 ? kMost : 8;

/** How two partials become one where nothing else is said. */
struct Plus {
  __device__ float operator()(float a, float b) const { return __fadd_rn(a, b); }
};

/**
 * A block's part in one call, made before the workspace is opened. `get(r, at)` is packet `at` of rank r's operand, of `total`; `step(a, b)`
 * adds; `join(at, sum)` makes the result of the sum, in the same way on all ranks. kOnce: a packet takes long to get, so that is done once; not
 * shared.
 */
template <typename T, int kMost, Algorithm kAlgorithm, bool kOnce, typename Get, typename Join, typename Step = Plus>
class Exchange {
 public:
  __device__ Exchange(const Peers& peers, const Operands& in, int64_t total, Get get, Join join, Step step = {})
      : peers_(peers),
        shared_(in.shared),
        rounded_(in.rounded),
        comes_back_(kOnce || peers.multicast != nullptr),
        total_(total),
        get_(get),
        join_(join),
        step_(step),
        now_(peers.state->progress) {}

  /** Hands on packets [first, end), by all threads of the block. False, on all of them, if a rank did not come. */
  __device__ bool Begin(int64_t first, int64_t end) {
    if constexpr (kAlgorithm == Algorithm::kLamport) {
      if (total_ == 0) return true;  // a call that waits for nobody is no turn: ranks would get too far ahead of each other
      for (int64_t at = first + threadIdx.x; at < end; at += blockDim.x) Send(at, get_(peers_.rank, at));
      Advance(peers_, {now_.epoch, total_ * peers_.ranks, (now_.turn + 1) % 3});
      ClearLast();
      return true;
    }
    Advance(peers_, {now_.epoch + 1, now_.sent, now_.turn});
    Packet* const own = peers_.Data(peers_.rank, now_.epoch);
    for (int64_t at = first + threadIdx.x; at < end && !shared_; at += blockDim.x) Store(own + at, get_(peers_.rank, at));
    if (!Meet(peers_, PointOf(now_.epoch, 0))) return false;
    if constexpr (kAlgorithm == Algorithm::kOneShot) return true;
    const int64_t share = first + FirstOf(end - first, peers_.rank + 1, peers_.ranks);
    if (peers_.multicast != nullptr) FenceToAll();
    for (int64_t at = first + FirstOf(end - first, peers_.rank, peers_.ranks) + threadIdx.x; at < share; at += blockDim.x) {
      const Packet result = Read(at);
      if (peers_.multicast != nullptr) {
        StoreToAll(peers_.OfAll(own + at), result);
        continue;
      }
#pragma unroll
      for (int r = 0; r < kMost; r++) {
        if (r < peers_.ranks) Store(peers_.Data(r, now_.epoch) + at, result);
      }
    }
    if (peers_.multicast != nullptr) FenceToAll();
    return Meet(peers_, PointOf(now_.epoch, 1));
  }

  /** The result of packet `at`, which `Begin` handed on, by the thread that works on it; it may ask twice. False if a rank's part did not come. */
  __device__ bool Take(int64_t at, Packet& result) {
    if constexpr (kAlgorithm == Algorithm::kLamport) return Receive(at, result);
    result = kAlgorithm == Algorithm::kOneShot ? Read(at) : Load(peers_.Data(peers_.rank, now_.epoch) + at);
    return true;
  }

  /** Last, by all threads of a block: nobody's operand is read any more. */
  __device__ void End() {
    if constexpr (kAlgorithm == Algorithm::kOneShot) {
      if (shared_) Meet(peers_, PointOf(now_.epoch, 1));
    }
  }

 private:
  using Parts = Packet[kAtOnce<kMost>];

  /** Adds ranks ascending; `fetch(first, part)` gets the packets of ranks `first` and following. False where one did not come. */
  template <typename Fetch>
  __device__ bool Sum(int64_t at, Packet& result, Fetch fetch) {
    typename T::Value sum[kLanes<T>] = {};
#pragma unroll
    for (int first = 0; first < kMost; first += kAtOnce<kMost>) {
      if (first >= peers_.ranks) break;
      Parts part;
      if (!fetch(first, part)) return false;
#pragma unroll
      for (int r = 0; r < kAtOnce<kMost>; r++) {
        if (first + r >= peers_.ranks) break;
        typename T::Value value[kLanes<T>];
        Unpack<T>(part[r], value);
#pragma unroll
        for (int i = 0; i < kLanes<T>; i++) {
          sum[i] = first + r == 0 ? value[i] : step_(sum[i], value[i]);
          if (rounded_) sum[i] = T::Widen(T::Round(sum[i]));
        }
      }
    }
    result = join_(at, sum);
    return true;
  }

  __device__ Packet Read(int64_t at) {
    Packet own{}, result;
    if constexpr (!kOnce) own = get_(peers_.rank, at);
    Sum(at, result, [&](int first, Parts& part) {
#pragma unroll
      for (int i = 0; i < kAtOnce<kMost>; i++) {
        const int r = first + i;
        if (r >= peers_.ranks) continue;
        if (!kOnce && r == peers_.rank) part[i] = own;
        else part[i] = !kOnce && shared_ ? get_(r, at) : Load(peers_.Data(r, now_.epoch) + at);
      }
      return true;
    });
    return result;
  }

  /** Where rank `by` puts packet `at` for rank `of`. */
  __device__ Packet* Place(int of, int by, int64_t at) const { return peers_.Third(of, now_.turn) + by * total_ + at; }

  /**
   * Empties what the last call filled. A rank that has got here has all of the last call, so nobody sends to that third before the call
   * after the next: and that call's sender has seen a packet of this rank's next call, which follows this one.
   */
  __device__ void ClearLast() const {
    Packet* const last = peers_.Third(peers_.rank, now_.turn + 2);
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < now_.sent; at += step) {
      StoreRelaxed(last + at, {{kNothing, kNothing, kNothing, kNothing}});
    }
  }

  __device__ void Send(int64_t at, Packet packet) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (packet.word[i] == kNothing) packet.word[i] = kNothing >> 1;
    }
    if (peers_.multicast != nullptr) return StoreToAll(peers_.OfAll(Place(peers_.rank, peers_.rank, at)), packet);
    for (int r = 0; r < peers_.ranks; r++) {
      if (kOnce || r != peers_.rank) StoreRelaxed(Place(r, peers_.rank, at), packet);
    }
  }

  __device__ bool Receive(int64_t at, Packet& result) {
    Packet own{};
    if (!comes_back_) own = get_(peers_.rank, at);
    return Sum(at, result, [&](int first, Parts& part) { return Await(at, own, first, part); });
  }

  __device__ bool Await(int64_t at, const Packet& own, int first, Parts& part) {
    Watch watch(peers_);
    for (;;) {
#pragma unroll
      for (int i = 0; i < kAtOnce<kMost>; i++) {
        const int r = first + i;
        if (r < peers_.ranks) part[i] = !comes_back_ && r == peers_.rank ? own : LoadRelaxed(Place(peers_.rank, r, at));
      }
      uint32_t missing = 0;
#pragma unroll
      for (int i = 0; i < kAtOnce<kMost>; i++) {
        const int r = first + i;
        if (r >= peers_.ranks || (!comes_back_ && r == peers_.rank)) continue;
#pragma unroll
        for (int k = 0; k < 4; k++) missing |= part[i].word[k] == kNothing ? 1u << r : 0u;
      }
      if (missing == 0) return true;
      const uint32_t why = watch.Look();
      if (why == 0) continue;
      Report(peers_, why == kExpired ? why | missing : why);
      return false;
    }
  }

  const Peers& peers_;
  const bool shared_, rounded_;
  /** Of packets: this rank's own are waited for as well, so that they have come before its next call empties their places. */
  const bool comes_back_;
  const int64_t total_;
  Get get_;
  Join join_;
  [[no_unique_address]] Step step_;
  const Progress now_;
};

/** At most kMost ranks; see Exchange. Grid: any number of blocks up to kMaxBlocks, of 32 to 512 threads. */
template <typename T, int kMost, Algorithm kAlgorithm, typename Join, typename Step>
__device__ inline void AllReduceBy(const SumArgs& args, Join join, Step step) {
  const Peers& peers = args.peers;
  const Vectors<T> out(args.out, args.count);
  const auto get = [&](int r, int64_t at) { return Vectors<T>(args.in.of[r], args.count).Get(at); };
  const int64_t total = VectorsOf<T>(args.count);
  const int64_t first = FirstOf(total, blockIdx.x, gridDim.x), end = FirstOf(total, blockIdx.x + 1, gridDim.x);
  Exchange<T, kMost, kAlgorithm, false, decltype(get), Join, Step> exchange(peers, args.in, total, get, join, step);
  if (!Open(peers) || !exchange.Begin(first, end)) return;
  for (int64_t at = first + threadIdx.x; at < end; at += blockDim.x) {
    Packet result;
    if (!exchange.Take(at, result)) break;
    out.Put(at, result);
  }
  exchange.End();
}

template <typename T, int kMost, Algorithm kAlgorithm>
__device__ inline void AllReduce(const SumArgs& args) {
  AllReduceBy<T, kMost, kAlgorithm>(args, [](int64_t, const float(&sum)[kLanes<T>]) { return Pack<T>(sum); }, Plus{});
}

/** Of any joining. */
template <typename T, int kMost, Algorithm kAlgorithm>
__device__ inline void AllJoin(const JoinArgs& args) {
  using Value = typename T::Value;
  AllReduceBy<T, kMost, kAlgorithm>(
      args.all,
      [&](int64_t, Value(&all)[kLanes<T>]) {
        if constexpr (std::is_same_v<Value, float>) {
#pragma unroll
          for (int i = 0; i < kLanes<T> && args.divisor != 1.0f; i++) all[i] = __fdiv_rn(all[i], args.divisor);
        }
        return Pack<T>(all);
      },
      [&](Value a, Value b) { return Joined(args.joining, a, b); });
}

}  // namespace rankmesh::cuda
