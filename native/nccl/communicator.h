// Communicator: one rank's place in a group of NCCL, with a thread of its own that begins and ends it and sees to it that nothing waits for ever.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "library.h"

namespace rankmesh::nccl {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

/** What a communicator needs of its device's driver. Both are called on any thread. */
struct Driver {
  virtual ~Driver() = default;
  /** Makes the device the calling thread's own. */
  virtual void Activate() = 0;
  /** Marks where a stream is now; what it gives says whether the stream has passed there. */
  virtual std::function<bool()> Mark(Stream stream) = 0;
};

/** Numbered as runtime/comm/nccl/calls.ts does. */
enum Kind : unsigned {
  kAllReduce,
  kReduce,
  kBroadcast,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kGather,
  kScatter,
  kSend,
  kReceive,
  kAllGatherV,
  kReduceScatterV,
  kAllToAllV,
  kKinds,
};

/** One rank's part of a collective; counts are of elements. */
struct Collective {
  Kind kind;
  DataType type;
  /** Of those that reduce; a Reduction, or what CreateScaledSum gave. */
  int reduction;
  /** The root, or the peer of a message. */
  int root;
  /** Of the smaller side, where the sides differ. */
  size_t count;
  /** Of the V forms, by rank: what the ranks bring or get; of kAllToAllV what this rank sends, then what it receives. */
  std::vector<size_t> counts;
  const std::byte* from;
  std::byte* to;
  /** Milliseconds that it may be under way. */
  double timeout_ms;
};

/** Elements that `collective` reads and writes on this rank. */
struct Extent {
  size_t from, to;
};
Extent ExtentOf(const Collective& collective, int rank, int size);

class Communicator;

/** A collective of a communicator on its way into a stream. */
struct Issue {
  std::shared_ptr<Communicator> communicator;
  Collective collective;
  Stream stream;
};

/**
 * Gives collectives of communicators of one thread to NCCL as one group, in stream order. What one rank cannot do fails them all: their
 * communicators are aborted. With `captured` the streams capture: what is under way then is a later run. @throws Error, which names the rank.
 */
void Run(const std::vector<Issue>& issues, bool captured = false);

/** What may run calls of a communicator's again: NCCL does not let go of one, or abort it, while there is such a thing. */
struct Rerun {
  /** As long as it is there. */
  std::weak_ptr<void> alive;
  /** Ends it, of any thread, and waits for nothing. */
  std::function<void(const std::string& why)> end;
};

class Communicator : public std::enable_shared_from_this<Communicator> {
 public:
  /** Called at most once, on the communicator's thread, when it has failed by itself. */
  using OnFailure = std::function<void(const Error&)>;
  /** Called on the communicator's thread: an error, or none. */
  using Done = std::function<void(const Error*)>;

  static std::shared_ptr<Communicator> New(const Library& library, std::shared_ptr<Driver> driver, int rank, int size, OnFailure on_failure);

  const Library& library() const { return library_; }
  int rank() const { return rank_; }
  int size() const { return size_; }

  /** Joins the group with this id; all its ranks do so. What has not come about in time is given up, with kTimeout. */
  void Join(const UniqueId& id, Deadline deadline, Done done);
  /** Joins a part of `parent`'s group, which all its ranks do or, with kNoColor, see done. `key` orders the part's ranks. */
  void Split(std::shared_ptr<Communicator> parent, int color, int key, Deadline deadline, Done done);
  /** Ends it behind what is under way; past the deadline as Abort does. */
  void Close(Deadline deadline);
  /** Ends it at once, for all its ranks: what is under way stops without a result. `why` is what later calls say. */
  void Abort(const std::string& why);
  /** Waits until it has ended, behind Close or Abort; false where it has not in time. */
  bool Ended(Deadline deadline);
  /** Something holds calls of it from now on, which is ended before it is. @throws Error where that has been already. */
  void Keep(Rerun rerun);
  /** What this stream has been given is a collective, or several, which may take so many milliseconds. */
  void Expect(Stream stream, double timeout_ms, const char* name);
  /** What has failed, from before the moment on when what is under way stops. */
  std::optional<Error> failure();
  /** Collectives that had not ended when it failed or was aborted. */
  size_t unfinished();

  /** A reduction that multiplies what this rank brings by `scalar`, then adds. @throws Error */
  int CreateScaledSum(double scalar, DataType type);
  void DestroyScaledSum(int reduction);
  /** Has NCCL know some memory beforehand; with `symmetric` by a window, which all ranks make alike. @throws Error */
  void* Register(void* memory, size_t bytes, bool symmetric);
  void Deregister(void* registration);

 private:
  friend void Run(const std::vector<Issue>& issues, bool captured);

  /** A collective that may be under way. */
  struct Pending {
    std::function<bool()> passed;
    Deadline deadline;
    double timeout_ms;
    const char* name;
  };

  Communicator(const Library& library, std::shared_ptr<Driver> driver, int rank, int size, OnFailure on_failure);
  void Do(std::function<void()> task);
  void Thread();
  void Begin(const std::function<void()>& join, const Done& done);
  void JoinNow(const UniqueId& id, Deadline deadline);
  void JoinBlocking(const UniqueId& id, Deadline deadline);
  void SplitNow(Communicator& parent, int color, int key, Deadline deadline);
  void CloseNow(Deadline deadline);
  /** Waits until what was asked of a communicator that does not block has come about. */
  void Await(Comm comm, const char* function, Deadline deadline);
  /** On its own thread: looks at what is under way. */
  void Watch();
  /** On its own thread. */
  void AbortNow();
  void Fail(const Error& error);
  /** As Abort, and no more than once. */
  void Break(const Error& why);
  void ForgetPassed();
  /** Ends all that it was told to keep; there will be no more. */
  void EndReruns(const std::string& why);
  void Call(const Collective& collective, Stream stream);
  /** @throws Error where it is of no more use. With `use_` held. */
  Comm Open();

  const Library& library_;
  const std::shared_ptr<Driver> driver_;
  const int rank_, size_;
  const OnFailure on_failure_;

  /** Held while NCCL is asked something about `comm_`, but for its async error. */
  std::mutex use_;
  Comm comm_ = nullptr;
  /** Calls return before they have come about. */
  bool polls_ = false;
  /** Registrations that are windows. */
  std::set<void*> windows_;
  /** It is of no more use: waits end. */
  std::atomic<bool> broken_ = false;

  /** Guards what follows. */
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::deque<Pending> pending_;
  std::vector<Rerun> reruns_;
  bool keeps_ = true;
  /** Until when a collective that is being given to NCCL may take for that. */
  Deadline issuing_ = Deadline::max();
  std::optional<Error> failure_;
  size_t unfinished_ = 0;
  bool ending_ = false;
  bool ended_ = false;
};

}  // namespace rankmesh::nccl
