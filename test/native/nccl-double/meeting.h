// Where the ranks of one communicator of NCCL's double meet, threads or processes: a shared segment named by the unique id, with a slot for each
// rank, in which all show the others a piece at a time, and a channel for each ordered pair.
#pragma once
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>

namespace nccl_double {

constexpr int kMostRanks = 8;
constexpr size_t kPiece = 1 << 15;

/** This rank's communicator was aborted. */
struct Aborted {};

struct Channel {
  alignas(64) std::atomic<uint32_t> full;
  uint32_t bytes;
  std::byte data[kPiece];
};

struct Place {
  /** Rounds for which this rank has filled its slot, and whose slots it has read. */
  alignas(64) std::atomic<uint64_t> posted;
  std::atomic<uint64_t> read;
  /** Of this rank's device, as the driver numbers them. */
  int device;
  uint32_t bytes;
  std::byte data[kPiece];
};

struct Segment {
  std::atomic<uint32_t> bell;
  std::atomic<int> joined;
  Place places[kMostRanks];
  /** By sender, then receiver. */
  Channel channels[kMostRanks][kMostRanks];
};

/** Names that no rank has taken away yet go with the process. */
class Names {
 public:
  static Names& Get() {
    static Names* const names = [] {
      std::atexit([] { Get().DropAll(); });
      return new Names();  // for threads that outlast the program
    }();
    return *names;
  }
  void Add(const std::string& name) {
    const std::lock_guard lock(mutex_);
    names_.insert(name);
  }
  void Drop(const std::string& name) {
    shm_unlink(name.c_str());
    const std::lock_guard lock(mutex_);
    names_.erase(name);
  }

 private:
  void DropAll() {
    const std::lock_guard lock(mutex_);
    for (const auto& name : names_) shm_unlink(name.c_str());
  }

  std::mutex mutex_;
  std::set<std::string> names_;
};

class Meeting {
 public:
  /** Makes the segment that ranks will find by `name`, or finds it. */
  Meeting(const std::string& name, int rank, int size) : rank_(rank), size_(size), name_(name) {
    const int file = shm_open(name.c_str(), O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(Segment)) != 0) throw std::runtime_error("no shared segment " + name);
    void* const at = mmap(nullptr, sizeof(Segment), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (at == MAP_FAILED) throw std::runtime_error("no memory for segment " + name);
    segment_ = static_cast<Segment*>(at);
    Names::Get().Add(name);
  }
  Meeting(const Meeting&) = delete;
  ~Meeting() { munmap(segment_, sizeof(Segment)); }

  /** Waits until all ranks have come; each takes the name away. @throws Aborted */
  void Join(int device) {
    segment_->places[rank_].device = device;
    segment_->joined++;
    Ring();
    try {
      Until([&] { return segment_->joined >= size_; });
    } catch (const Aborted&) {
      Names::Get().Drop(name_);
      throw;
    }
    Names::Get().Drop(name_);
  }

  int device(int rank) const { return segment_->places[rank].device; }

  /** Shows the others `bytes` (at most kPiece), which `look` sees of every rank: all do so together. */
  void Round(const void* data, size_t bytes, const std::function<void(int rank, const std::byte* data, size_t bytes)>& look) {
    const uint64_t round = ++rounds_;
    Until([&] { return All(&Place::read, round - 1); });
    Place& mine = segment_->places[rank_];
    if (bytes > 0) std::memcpy(mine.data, data, bytes);
    mine.bytes = static_cast<uint32_t>(bytes);
    mine.posted = round;
    Ring();
    Until([&] { return All(&Place::posted, round); });
    for (int rank = 0; rank < size_; rank++) look(rank, segment_->places[rank].data, segment_->places[rank].bytes);
    mine.read = round;
    Ring();
  }

  /** A channel's next piece; false where it is not its turn. */
  bool Send(int to, const std::byte* data, size_t bytes) {
    Channel& channel = segment_->channels[rank_][to];
    if (channel.full) return false;
    if (bytes > 0) std::memcpy(channel.data, data, bytes);
    channel.bytes = static_cast<uint32_t>(bytes);
    channel.full = 1;
    Ring();
    return true;
  }

  /** Takes a piece into `data`; false where there is none. @throws std::runtime_error for one of another length. */
  bool Receive(int from, std::byte* data, size_t bytes) {
    Channel& channel = segment_->channels[from][rank_];
    if (!channel.full) return false;
    if (channel.bytes != bytes) throw std::runtime_error("rank " + std::to_string(from) + " sends rank " + std::to_string(rank_) + " another length than it receives");
    if (bytes > 0) std::memcpy(data, channel.data, bytes);
    channel.full = 0;
    Ring();
    return true;
  }

  /** @throws Aborted */
  void Until(const std::function<bool()>& come) {
    for (;;) {
      const uint32_t bell = segment_->bell;
      if (come()) return;
      if (aborted_) throw Aborted();
      const timespec most{0, 5'000'000};
      syscall(SYS_futex, &segment_->bell, FUTEX_WAIT, bell, &most, nullptr, 0);
    }
  }

  /** On any thread: this rank's waits end. As with NCCL, the other ranks are not told. */
  void Abort() {
    aborted_ = true;
    Ring();
  }

 private:
  bool All(std::atomic<uint64_t> Place::*count, uint64_t round) const {
    for (int rank = 0; rank < size_; rank++)
      if (segment_->places[rank].*count < round) return false;
    return true;
  }

  void Ring() {
    segment_->bell++;
    syscall(SYS_futex, &segment_->bell, FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0);
  }

  const int rank_, size_;
  const std::string name_;
  Segment* segment_;
  uint64_t rounds_ = 0;
  std::atomic<bool> aborted_ = false;
};

}  // namespace nccl_double
