// Mesh: rounds of bytes among processes that gloo has connected with each other over TCP. Knows nothing of JavaScript.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "combine.h"

namespace gloo {
class Context;
namespace transport {
class UnboundBuffer;
}
}  // namespace gloo

namespace rankmesh {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

/** Why a round did not end; the mesh is of no more use then. */
struct MeshError : std::runtime_error {
  MeshError(const std::string& text, std::vector<int> missing, bool timed_out)
      : std::runtime_error(text), missing(std::move(missing)), timed_out(timed_out) {}
  /** Whose bytes had not come. */
  std::vector<int> missing;
  bool timed_out;
};

/** Ranks brought different signatures to a round. */
struct Mismatch : std::runtime_error {
  Mismatch() : std::runtime_error("ranks called different collectives") {}
};

/** Bytes that have come from a rank. */
struct Bytes {
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  explicit Bytes(size_t length = 0);
  std::unique_ptr<std::byte[], Free> data;
  size_t length;
};

/** How ranks find each other. Both may throw; `get` waits. */
struct MeshStore {
  std::function<void(const std::string&, const std::vector<char>&)> set;
  std::function<std::vector<char>(const std::string&)> get;
};

class Mesh {
 public:
  /** Connects to all others; `host` is the address to listen on. @throws any std::exception */
  Mesh(int rank, int size, const std::string& host, const MeshStore& store);
  ~Mesh();

  /** Every other rank's bytes, by rank (none for this one). From one thread only, as AllReduce. @throws Mismatch */
  std::vector<Bytes> Exchange(const std::byte* bytes, size_t length, Deadline deadline, uint32_t signature = 0);
  /** As Exchange, with one rank. One thread at a time for each peer and tag. */
  Bytes ExchangePair(int peer, uint32_t tag, const std::byte* bytes, size_t length, Deadline deadline);
  /** Combines `count` elements over ranks, in place, ranks ascending; the signature says type, operation and count. @throws Mismatch */
  void AllReduce(Type type, Op op, std::byte* array, size_t count, Deadline deadline, uint32_t signature);
  /** Whoever waits now or later throws. From any thread. */
  void Abort();

 private:
  using Buffer = std::unique_ptr<gloo::transport::UnboundBuffer>;
  struct Head;
  struct Awaited {
    gloo::transport::UnboundBuffer* buffer;
    int peer;
  };

  Buffer Over(const void* bytes, size_t length);
  void ReceiveHeads(unsigned parity);
  void AwaitReceived(const std::vector<Awaited>& awaited, Deadline deadline);
  void AwaitSent(gloo::transport::UnboundBuffer& buffer, size_t times, Deadline deadline);
  /** One wait that Abort ends. */
  void Await(gloo::transport::UnboundBuffer& buffer, bool receives, Deadline deadline);
  [[noreturn]] void Break(const std::string& why, std::vector<int> missing, bool timed_out);
  std::vector<int> Peers() const;

  const int rank_;
  const int size_;
  std::shared_ptr<gloo::Context> context_;
  std::mutex mutex_;
  std::set<gloo::transport::UnboundBuffer*> waiting_;
  std::atomic<bool> aborted_{false};
  /** By parity of the round and by rank: where heads arrive. */
  std::vector<std::unique_ptr<Head>> heads_[2];
  uint64_t round_ = 0;
  /** Where others' parts of an all-reduce arrive; kept from one to the next. */
  Bytes parts_;
};

}  // namespace rankmesh
