// A communicator of NCCL's double: collectives as rounds in which the ranks show each other their operands, checked to be the same call.
#pragma once
#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "arithmetic.h"
#include "meeting.h"
#include "streams.h"

namespace nccl_double {

enum Code { kSuccess, kUnhandledCudaError, kSystemError, kInternalError, kInvalidArgument, kInvalidUsage, kRemoteError, kInProgress, kTimeout };

enum Kind { kAllReduce, kReduce, kBroadcast, kAllGather, kReduceScatter, kAllToAll, kGather, kScatter, kSend, kReceive };

struct Operation {
  Kind kind;
  const std::byte* from;
  std::byte* to;
  size_t count;
  int type, reduction, root;
};

/** Something that is to go wrong: `what` is a code that the function returns, or `async` and a code, or `stuck`, from the call on. */
struct Fault {
  std::string function, what;
  int call, rank;
};

/** RANKMESH_NCCL_DOUBLE_FAULT: function:call:rank:what, and more of them behind commas. */
inline std::vector<Fault> FaultsPlanted() {
  std::vector<Fault> faults;
  const char* const planted = std::getenv("RANKMESH_NCCL_DOUBLE_FAULT");
  std::istringstream all(planted ? planted : "");
  for (std::string one; std::getline(all, one, ',');) {
    std::istringstream parts(one);
    Fault fault;
    std::string call, rank;
    std::getline(parts, fault.function, ':'), std::getline(parts, call, ':'), std::getline(parts, rank, ':'), std::getline(parts, fault.what);
    fault.call = std::stoi(call), fault.rank = std::stoi(rank);
    faults.push_back(fault);
  }
  return faults;
}

struct Communicator : std::enable_shared_from_this<Communicator> {
  Communicator(const std::string& name, int rank, int size, bool blocking)
      : name(name), rank(rank), size(size), blocking(blocking), meeting(name, rank, size), faults(FaultsPlanted()) {}

  const std::string name;
  const int rank, size;
  const bool blocking;
  Meeting meeting;
  const std::vector<Fault> faults;
  std::mutex mutex;
  std::map<std::string, int> calls;
  std::atomic<int> async = kSuccess;
  std::atomic<int> outstanding = 0;
  /** Calls that graphs hold. */
  const std::shared_ptr<std::atomic<int>> captured = std::make_shared<std::atomic<int>>(0);
  int splits = 0;
  std::vector<double> scales;
  std::vector<void*> registrations;

  /** Counts a call of this function; what is planted there, or nothing. */
  std::string Planted(const std::string& function) {
    const std::lock_guard lock(mutex);
    const int call = ++calls[function];
    for (const auto& fault : faults)
      if (fault.function == function && fault.call == call && fault.rank == rank) return fault.what;
    return "";
  }

  /** Runs on a stream, in its order: the collectives of a group one after the other, then its messages all together. */
  void Run(const std::vector<Operation>& operations, const std::string& planted) {
    outstanding++;
    try {
      if (planted == "stuck") meeting.Until([] { return false; });
      if (planted.rfind("async", 0) == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the call has returned by then
        async = std::stoi(planted.substr(5));
        meeting.Until([] { return false; });
      }
      std::vector<Operation> messages;
      for (const auto& operation : operations) {
        if (operation.kind == kSend || operation.kind == kReceive) messages.push_back(operation);
        else Collective(operation);
      }
      Messages(messages);
    } catch (const Aborted&) {
    } catch (const std::exception& error) {
      Say(error.what());
      async = kInternalError;
      try {
        meeting.Until([] { return false; });
      } catch (const Aborted&) {
      }
    }
    outstanding--;
  }

  /** Whether graphs let go of it in time: NCCL waits for that in `function` for as long as it takes, which is for ever where nobody ends them. */
  bool Released(const std::string& function) const {
    // Steps, not time: the process may stand still meanwhile.
    for (int step = 0; step < 5000 && *captured > 0; step++) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (*captured == 0) return true;
    Driver::Get().Report(function + " of rank " + std::to_string(rank) + ": graphs still hold " + std::to_string(*captured) + " calls, so that it would never return");
    return false;
  }

  static void Say(const std::string& what) {
    const std::lock_guard lock(Words().mutex);
    Words().text = what;
  }

  static std::string Said() {
    const std::lock_guard lock(Words().mutex);
    return Words().text;
  }

 private:
  struct LastError {
    std::mutex mutex;
    std::string text;
  };
  static LastError& Words() {
    static LastError* const words = new LastError();
    return *words;
  }

  /** What all ranks must have called alike. */
  struct Signature {
    int kind, type, reduction, root;
    uint64_t count;
    bool operator==(const Signature&) const = default;
  };

  void Collective(const Operation& given) {
    const auto& [kind, from, to, count, type, reduction, root] = given;
    const Signature mine{kind, type, std::min<int>(reduction, kReductions), root, count};
    int other = -1;
    meeting.Round(&mine, sizeof mine, [&](int rank, const std::byte* data, size_t) {
      Signature theirs;
      std::memcpy(&theirs, data, sizeof theirs);
      if (!(theirs == mine)) other = rank;
    });
    if (other >= 0) throw std::runtime_error("ranks " + std::to_string(rank) + " and " + std::to_string(other) + " call different collectives");
    const bool parts = kind == kReduceScatter || kind == kAllToAll || kind == kScatter;
    const bool reduces = kind == kAllReduce || kind == kReduce || kind == kReduceScatter;
    const bool shows = (kind != kBroadcast && kind != kScatter) || rank == root;
    const size_t each = kPiece / kBytes[type];
    std::vector<std::byte> piece(kPiece), sum(kPiece);
    std::vector<float> wide;
    for (int part = 0; part < (parts ? size : 1); part++) {
      const bool takes = parts ? part == rank : (kind != kReduce && kind != kGather) || rank == root;
      for (size_t start = 0; start < count; start += each) {
        const size_t n = std::min(each, count - start), bytes = n * kBytes[type];
        if (shows) std::memcpy(piece.data(), from + (static_cast<size_t>(part) * count + start) * kBytes[type], bytes);
        if (reduces && reduction >= kReductions) Scale(type, scales.at(static_cast<size_t>(reduction - kReductions)), piece.data(), n);
        meeting.Round(piece.data(), shows ? bytes : 0, [&](int source, const std::byte* data, size_t) {
          if (!takes) return;
          std::byte* const into = to + start * kBytes[type];
          const bool each_rank = kind == kAllGather || kind == kAllToAll || kind == kGather;
          if (reduces && (type == kFloat16 || type == kBfloat16)) {
            // Rounded once, in the end: as some of NCCL's ways do, where others round on the way.
            Widen(type, data, n, source == 0, reduction >= kReductions ? kSum : reduction, wide);
            if (source < size - 1) return;
            for (size_t i = 0; i < n; i++) StoreFloat(type, into + 2 * i, reduction == kAvg ? wide[i] / static_cast<float>(size) : wide[i]);
          } else if (reduces) {
            if (source == 0) std::memcpy(sum.data(), data, bytes);
            else Combine(type, reduction >= kReductions ? kSum : reduction, sum.data(), data, n);
            if (source < size - 1) return;
            if (reduction == kAvg) Scale(type, 1.0 / size, sum.data(), n);
            std::memcpy(into, sum.data(), bytes);
          } else if (each_rank) {
            std::memcpy(into + static_cast<size_t>(source) * count * kBytes[type], data, bytes);
          } else if (source == root) {
            std::memcpy(into, data, bytes);
          }
        });
      }
    }
  }

  /** A message, or a rank's own to itself, as far as it has come: first its length and type, then its bytes. */
  struct Message {
    Operation operation;
    uint64_t head[2];
    bool headed = false;
    size_t done = 0;

    size_t bytes() const { return operation.count * kBytes[operation.type]; }
    bool finished() const { return headed && done == bytes(); }
  };

  void Messages(const std::vector<Operation>& operations) {
    std::vector<Message> messages;
    for (const auto& operation : operations) messages.push_back({operation, {operation.count, static_cast<uint64_t>(operation.type)}});
    const auto finished = [&] { return std::all_of(messages.begin(), messages.end(), [](const Message& message) { return message.finished(); }); };
    while (!finished()) meeting.Until([&] { return Advance(messages); });
  }

  /** Of each peer and way the first message that is not finished; whether any got further. */
  bool Advance(std::vector<Message>& messages) {
    bool moved = false;
    bool busy[2][kMostRanks] = {};
    for (auto& message : messages) {
      const auto& [kind, from, to, count, type, reduction, peer] = message.operation;
      if (message.finished() || std::exchange(busy[kind == kSend][peer], true)) continue;
      const size_t n = std::min(kPiece, message.bytes() - message.done);
      if (kind == kSend) {
        if (!message.headed) message.headed = meeting.Send(peer, reinterpret_cast<const std::byte*>(message.head), sizeof message.head), moved |= message.headed;
        else if (meeting.Send(peer, from + message.done, n)) message.done += n, moved = true;
        continue;
      }
      uint64_t head[2];
      if (message.headed) {
        if (meeting.Receive(peer, to + message.done, n)) message.done += n, moved = true;
      } else if (meeting.Receive(peer, reinterpret_cast<std::byte*>(head), sizeof head)) {
        if (std::memcmp(head, message.head, sizeof head) != 0) throw std::runtime_error("a message of another type or length than is received");
        message.headed = moved = true;
      }
    }
    return moved;
  }
};

}  // namespace nccl_double
