// The life of a communicator, on its own thread; what is under way is looked at there as well.
#include "communicator.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace rankmesh::nccl {
namespace {

using std::chrono::duration_cast;
using std::chrono::microseconds;
using std::chrono::milliseconds;

/** How often what is under way is looked at. */
constexpr auto kLook = milliseconds(20);
/** How long an abort waits for whoever is inside a call: if that hangs, the abort is what ends it. */
constexpr auto kGrace = milliseconds(500);

}  // namespace

std::shared_ptr<Communicator> Communicator::New(const Library& library, std::shared_ptr<Driver> driver, int rank, int size, OnFailure on_failure) {
  std::shared_ptr<Communicator> made(new Communicator(library, std::move(driver), rank, size, std::move(on_failure)));
  // The thread keeps it until it has ended.
  std::thread([made] { made->Thread(); }).detach();
  return made;
}

Communicator::Communicator(const Library& library, std::shared_ptr<Driver> driver, int rank, int size, OnFailure on_failure)
    : library_(library), driver_(std::move(driver)), rank_(rank), size_(size), on_failure_(std::move(on_failure)) {}

void Communicator::Join(const UniqueId& id, Deadline deadline, Done done) {
  Do([this, id, deadline, done] { Begin([&] { JoinNow(id, deadline); }, done); });
}

void Communicator::Split(std::shared_ptr<Communicator> parent, int color, int key, Deadline deadline, Done done) {
  Do([this, parent = std::move(parent), color, key, deadline, done] {
    Begin(
        [&] {
          try {
            SplitNow(*parent, color, key, deadline);
          } catch (const Error& error) {
            // A split that one rank has given up leaves the parent in the middle of it.
            if (error.code != kInvalidUsage) parent->Break(error);
            throw;
          }
        },
        done);
  });
}

void Communicator::Close(Deadline deadline) {
  EndReruns("this rank has left it");
  Do([this, deadline] { CloseNow(deadline); });
}

void Communicator::Abort(const std::string& why) { Break(Error(kInternalError, why, rank_)); }

bool Communicator::Ended(Deadline deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline, [this] { return ended_; });
}

std::optional<Error> Communicator::failure() {
  const std::lock_guard lock(mutex_);
  return failure_;
}

size_t Communicator::unfinished() {
  const std::lock_guard lock(mutex_);
  return unfinished_;
}

void Communicator::Do(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return;
    tasks_.push_back(std::move(task));
  }
  changed_.notify_all();
}

void Communicator::Break(const Error& why) {
  {
    const std::lock_guard lock(mutex_);
    if (ending_ || broken_.exchange(true)) return;
    failure_ = why;
    tasks_.push_front([this] { AbortNow(); });
  }
  changed_.notify_all();
}

void Communicator::Thread() {
  std::unique_lock lock(mutex_);
  while (!ending_ || !tasks_.empty()) {
    const auto busy = [this] { return !pending_.empty() || issuing_ != Deadline::max(); };
    if (busy()) changed_.wait_for(lock, kLook, [this] { return !tasks_.empty(); });
    else changed_.wait(lock, [&] { return !tasks_.empty() || busy(); });
    if (!tasks_.empty()) {
      const auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    } else if (busy()) {
      lock.unlock();
      Watch();
      lock.lock();
    }
  }
  ended_ = true;
  lock.unlock();
  changed_.notify_all();
}

void Communicator::Begin(const std::function<void()>& join, const Done& done) {
  try {
    if (broken_) Open();
    driver_->Activate();
    join();
  } catch (const Error& error) {
    Break(error);
    done(&error);
    return;
  } catch (const std::exception& thrown) {
    const Error error(kUnhandledCudaError, thrown.what(), rank_);
    Break(error);
    done(&error);
    return;
  }
  done(nullptr);
}

void Communicator::JoinNow(const UniqueId& id, Deadline deadline) {
  if (!library_.CommInitRankConfig) return JoinBlocking(id, deadline);
  Config config;
  config.blocking = 0;
  polls_ = true;
  library_.Call(library_.CommInitRankConfig, rank_, &comm_, size_, id, rank_, &config);
  Await(comm_, library_.CommInitRankConfig.name, deadline);
}

/** Versions before 2.14 only return when all ranks have come: a thread waits for that which can be given up. */
void Communicator::JoinBlocking(const UniqueId& id, Deadline deadline) {
  struct Attempt {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false, given_up = false;
    Comm comm = nullptr;
    Result result = kSuccess;
    std::string why;
  };
  const auto attempt = std::make_shared<Attempt>();
  std::thread([attempt, driver = driver_, &library = library_, id, size = size_, rank = rank_] {
    Comm comm = nullptr;
    Result result = kUnhandledCudaError;
    std::string why;
    try {
      driver->Activate();
      result = library.CommInitRank.pointer(&comm, size, id, rank);
      library.Check(result, library.CommInitRank.name, rank);  // here, as NCCL keeps its text by thread
    } catch (const std::exception& error) {
      why = error.what();
    }
    const std::lock_guard lock(attempt->mutex);
    if (attempt->given_up && comm) library.CommAbort.pointer(comm);
    attempt->done = true;
    attempt->comm = comm;
    attempt->result = result;
    attempt->why = why;
    attempt->changed.notify_all();
  }).detach();
  std::unique_lock lock(attempt->mutex);
  while (!attempt->done && !broken_ && Clock::now() < deadline) attempt->changed.wait_for(lock, kLook);
  if (!attempt->done) {
    attempt->given_up = true;
    if (broken_) throw Error(kInternalError, "ncclCommInitRank of rank " + std::to_string(rank_) + ": given up", rank_);
    throw Error(kTimeout, "ncclCommInitRank of rank " + std::to_string(rank_) + ": not all ranks came in time", rank_);
  }
  comm_ = attempt->comm;
  if (!attempt->why.empty()) throw Error(attempt->result, attempt->why, rank_);
}

void Communicator::SplitNow(Communicator& parent, int color, int key, Deadline deadline) {
  library_.Need(library_.CommSplit);
  const std::lock_guard use(parent.use_);
  Config config;
  config.blocking = parent.polls_ ? 0 : 1;
  polls_ = parent.polls_;
  library_.Call(library_.CommSplit, rank_, parent.Open(), color, key, &comm_, &config);
  parent.Await(parent.comm_, library_.CommSplit.name, deadline);
  if (comm_) Await(comm_, library_.CommSplit.name, deadline);
}

void Communicator::Await(Comm comm, const char* function, Deadline deadline) {
  if (!polls_) return;
  for (auto pause = microseconds(20);; pause = std::min<microseconds>(pause * 2, milliseconds(1))) {
    if (broken_) {
      const std::lock_guard lock(mutex_);
      throw Error(kInternalError, std::string(function) + " of rank " + std::to_string(rank_) + ": given up, as the group has ended: " + failure_->what(), rank_);
    }
    Result state = kSuccess;
    library_.Call(library_.CommGetAsyncError, rank_, comm, &state);
    if (state != kInProgress) return library_.Check(state, function, rank_);
    if (Clock::now() >= deadline) throw Error(kTimeout, std::string(function) + " of rank " + std::to_string(rank_) + ": not all ranks came in time", rank_);
    std::this_thread::sleep_for(pause);
  }
}

void Communicator::CloseNow(Deadline deadline) {
  if (broken_) return;  // the abort is on its way
  const auto under_way = [this] {
    ForgetPassed();
    const std::lock_guard lock(mutex_);
    return !pending_.empty();
  };
  while (under_way() && !broken_ && Clock::now() < deadline) std::this_thread::sleep_for(milliseconds(1));
  try {
    // NCCL would wait for it, versions before 2.14 without an end.
    if (under_way()) throw Error(kTimeout, "what was under way has not ended in time", rank_);
    const std::lock_guard use(use_);
    const Comm comm = comm_;
    if (comm && !broken_) {
      driver_->Activate();
      if (library_.CommFinalize) {
        library_.Call(library_.CommFinalize, rank_, comm);
        Await(comm, library_.CommFinalize.name, deadline);
      }
      comm_ = nullptr;
      library_.Call(library_.CommDestroy, rank_, comm);
    }
  } catch (const std::exception& error) {
    Break(Error(kInternalError, error.what(), rank_));
    return;
  }
  const std::lock_guard lock(mutex_);
  if (broken_.exchange(true)) return;
  ending_ = true;
}

void Communicator::Watch() {
  ForgetPassed();
  std::string late;
  Deadline issuing;
  {
    const std::lock_guard lock(mutex_);
    const auto now = Clock::now();
    issuing = issuing_;
    if (now >= issuing) late = "a collective could not be given to NCCL in time";
    for (const auto& pending : pending_) {
      if (now < pending.deadline) continue;
      late = std::string(pending.name) + " of rank " + std::to_string(rank_) + ": still under way after " +
             std::to_string(std::lround(pending.timeout_ms)) + " ms; some rank has not come to it, or is busy with something else";
      break;
    }
  }
  if (broken_) return;
  if (!late.empty()) return Fail(Error(kTimeout, late, rank_));
  Result state = kSuccess;
  try {
    if (issuing == Deadline::max() && comm_) {
      library_.Call(library_.CommGetAsyncError, rank_, comm_, &state);
      library_.Check(state, "a collective", rank_);
    }
  } catch (const Error& error) {
    Fail(error);
  }
}

/** The thread that aborts is the one that asks for async errors, so that none asks about what is gone. */
void Communicator::AbortNow() {
  ForgetPassed();
  // Beside NCCL: each may wait for the other, graphs for the driver, which has its hands full until NCCL stops what runs, NCCL for graphs.
  const std::string why = failure()->what();
  std::thread ending;
  try {
    ending = std::thread([this, &why] { EndReruns(why); });
  } catch (const std::system_error&) {
    EndReruns(why);
  }
  std::unique_lock use(use_, std::defer_lock);
  for (const auto end = Clock::now() + kGrace; !use.try_lock() && Clock::now() < end;) std::this_thread::sleep_for(milliseconds(1));
  if (const Comm comm = std::exchange(comm_, nullptr)) {
    try {
      driver_->Activate();
    } catch (const std::exception&) {
      // A device that is lost: NCCL says so itself.
    }
    (void)library_.CommAbort.pointer(comm);
  }
  if (ending.joinable()) ending.join();
  const std::lock_guard lock(mutex_);
  unfinished_ = pending_.size();
  pending_.clear();
  ending_ = true;
}

void Communicator::Fail(const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    if (broken_.exchange(true)) return;
    failure_ = error;
  }
  on_failure_(error);
  AbortNow();
}

void Communicator::ForgetPassed() {
  const std::lock_guard lock(mutex_);
  while (!pending_.empty() && pending_.front().passed()) pending_.pop_front();
}

void Communicator::Keep(Rerun rerun) {
  const std::lock_guard lock(mutex_);
  if (!keeps_ || broken_) throw Error(kInvalidUsage, "NCCL's communicator of rank " + std::to_string(rank_) + " has ended meanwhile", rank_);
  std::erase_if(reruns_, [](const Rerun& one) { return one.alive.expired(); });
  reruns_.push_back(std::move(rerun));
}

void Communicator::EndReruns(const std::string& why) {
  std::vector<Rerun> all;
  {
    const std::lock_guard lock(mutex_);
    keeps_ = false;
    all.swap(reruns_);
  }
  for (const Rerun& one : all) one.end("NCCL's communicator of rank " + std::to_string(rank_) + " has ended: " + why);
}

Comm Communicator::Open() {
  if (!broken_ && comm_) return comm_;
  const std::lock_guard lock(mutex_);
  throw Error(kInvalidUsage, "NCCL's communicator of rank " + std::to_string(rank_) + " is of no more use: " + (failure_ ? failure_->what() : comm_ ? "it is closing" : "it has joined no group, or left it"),
              rank_);
}

void* Communicator::Register(void* memory, size_t bytes, bool symmetric) {
  const std::lock_guard use(use_);
  const Comm comm = Open();
  driver_->Activate();
  void* registration = nullptr;
  if (symmetric) {
    Window window = nullptr;
    library_.Call(library_.CommWindowRegister, rank_, comm, memory, bytes, &window, kSymmetricWindow);
    registration = window;
    windows_.insert(registration);
  } else {
    library_.Call(library_.CommRegister, rank_, comm, memory, bytes, &registration);
  }
  return registration;
}

void Communicator::Deregister(void* registration) {
  const std::lock_guard use(use_);
  const Comm comm = Open();
  driver_->Activate();
  if (windows_.erase(registration) > 0) library_.Call(library_.CommWindowDeregister, rank_, comm, static_cast<Window>(registration));
  else library_.Call(library_.CommDeregister, rank_, comm, registration);
}

}  // namespace rankmesh::nccl
