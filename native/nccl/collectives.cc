// Collectives as calls of NCCL: the ones it has, and the others as groups of those.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>

#include "communicator.h"

namespace rankmesh::nccl {
namespace {

/** A number as NCCL reads one of `type`. */
struct Scalar {
  std::byte bytes[8] = {};

  Scalar(double value, DataType type) {
    switch (type) {
      case kInt8:
      case kUint8:
      case kInt32:
      case kUint32:
      case kInt64:
      case kUint64: {
        const auto whole = static_cast<int64_t>(value);
        std::memcpy(bytes, &whole, kTypeBytes[type]);
        break;
      }
      case kFloat64:
        std::memcpy(bytes, &value, 8);
        break;
      case kFloat32: {
        const auto single = static_cast<float>(value);
        std::memcpy(bytes, &single, 4);
        break;
      }
      case kBfloat16: {
        const auto word = std::bit_cast<uint32_t>(static_cast<float>(value));
        const auto half = static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
        std::memcpy(bytes, &half, 2);
        break;
      }
      case kFloat16: {
        const uint16_t half = HalfOf(value);
        std::memcpy(bytes, &half, 2);
        break;
      }
      case kDataTypes:
        break;
    }
  }

  static uint16_t HalfOf(double value) {
    const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
    const double size = std::fabs(value);
    if (std::isnan(value)) return 0x7e00;
    if (size >= 65520) return sign | 0x7c00;
    const int exponent = std::max(std::ilogb(size == 0 ? 1e-9 : size), -14);
    const auto steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));  // to even
    return static_cast<uint16_t>(sign + ((exponent + 14) << 10) + steps);
  }
};

size_t SumOf(const std::vector<size_t>& counts, size_t from, size_t to) {
  return std::accumulate(counts.begin() + static_cast<ptrdiff_t>(from), counts.begin() + static_cast<ptrdiff_t>(to), size_t{0});
}

}  // namespace

Extent ExtentOf(const Collective& collective, int rank, int size) {
  const auto& [kind, type, reduction, root, count, counts, from, to, timeout] = collective;
  const size_t me = static_cast<size_t>(rank), ranks = static_cast<size_t>(size), all = count * ranks, here = rank == root;
  switch (kind) {
    case kAllReduce:
      return {count, count};
    case kReduce:
      return {count, here * count};
    case kBroadcast:
      return {here * count, count};
    case kAllGather:
      return {count, all};
    case kReduceScatter:
      return {all, count};
    case kAllToAll:
      return {all, all};
    case kGather:
      return {count, here * all};
    case kScatter:
      return {here * all, count};
    case kSend:
      return {count, 0};
    case kReceive:
      return {0, count};
    case kAllGatherV:
      return {counts[me], SumOf(counts, 0, ranks)};
    case kReduceScatterV:
      return {SumOf(counts, 0, ranks), counts[me]};
    case kAllToAllV:
      return {SumOf(counts, 0, ranks), SumOf(counts, ranks, 2 * ranks)};
    case kKinds:
      break;
  }
  return {0, 0};
}

void Communicator::Call(const Collective& collective, Stream stream) {
  const auto& [kind, type, reduction, root, count, counts, from, to, timeout] = collective;
  const auto& nccl = library_;
  const Comm comm = comm_;
  const auto ranks = static_cast<size_t>(size_);
  const size_t bytes = kTypeBytes[type];
  const auto send = [&, type = type](const std::byte* at, size_t n, size_t peer) {
    if (n > 0) nccl.Call(nccl.Send, rank_, at, n, type, static_cast<int>(peer), comm, stream);
  };
  const auto receive = [&, type = type](std::byte* at, size_t n, size_t peer) {
    if (n > 0) nccl.Call(nccl.Recv, rank_, at, n, type, static_cast<int>(peer), comm, stream);
  };
  size_t at = 0, into = 0;
  switch (kind) {
    case kAllReduce:
      nccl.Call(nccl.AllReduce, rank_, from, to, count, type, reduction, comm, stream);
      break;
    case kReduce:
      nccl.Call(nccl.Reduce, rank_, from, to, count, type, reduction, root, comm, stream);
      break;
    case kBroadcast:
      nccl.Call(nccl.Broadcast, rank_, from, to, count, type, root, comm, stream);
      break;
    case kAllGather:
      nccl.Call(nccl.AllGather, rank_, from, to, count, type, comm, stream);
      break;
    case kReduceScatter:
      nccl.Call(nccl.ReduceScatter, rank_, from, to, count, type, reduction, comm, stream);
      break;
    case kAllToAll:
      if (nccl.AlltoAll) {
        nccl.Call(nccl.AlltoAll, rank_, from, to, count, type, comm, stream);
        break;
      }
      for (size_t peer = 0; peer < ranks; peer++) send(from + peer * count * bytes, count, peer), receive(to + peer * count * bytes, count, peer);
      break;
    case kGather:
      if (nccl.Gather) {
        nccl.Call(nccl.Gather, rank_, from, to, count, type, root, comm, stream);
        break;
      }
      send(from, count, static_cast<size_t>(root));
      for (size_t peer = 0; peer < ranks && rank_ == root; peer++) receive(to + peer * count * bytes, count, peer);
      break;
    case kScatter:
      if (nccl.Scatter) {
        nccl.Call(nccl.Scatter, rank_, from, to, count, type, root, comm, stream);
        break;
      }
      for (size_t peer = 0; peer < ranks && rank_ == root; peer++) send(from + peer * count * bytes, count, peer);
      receive(to, count, static_cast<size_t>(root));
      break;
    case kSend:
      send(from, count, static_cast<size_t>(root));
      break;
    case kReceive:
      receive(to, count, static_cast<size_t>(root));
      break;
    case kAllGatherV:
      for (size_t peer = 0; peer < ranks; at += counts[peer++] * bytes) {
        const bool mine = peer == static_cast<size_t>(rank_);
        if (counts[peer] > 0) nccl.Call(nccl.Broadcast, rank_, mine ? from : to + at, to + at, counts[peer], type, static_cast<int>(peer), comm, stream);
      }
      break;
    case kReduceScatterV:
      for (size_t peer = 0; peer < ranks; at += counts[peer++] * bytes) {
        if (counts[peer] > 0) nccl.Call(nccl.Reduce, rank_, from + at, to, counts[peer], type, reduction, static_cast<int>(peer), comm, stream);
      }
      break;
    case kAllToAllV:
      for (size_t peer = 0; peer < ranks; peer++) {
        send(from + at, counts[peer], peer), receive(to + into, counts[ranks + peer], peer);
        at += counts[peer] * bytes;
        into += counts[ranks + peer] * bytes;
      }
      break;
    case kKinds:
      break;
  }
}

namespace {

constexpr const char* kNames[kKinds] = {"allReduce", "reduce", "broadcast", "allGather", "reduceScatter", "allToAll", "gather",
                                        "scatter",   "send",   "recv",      "allGatherV", "reduceScatterV", "allToAllV"};

Deadline After(double milliseconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::milli>(std::min(milliseconds, 86'400e3)));
}

}  // namespace

void Run(const std::vector<Issue>& issues, bool captured) {
  if (issues.empty()) return;
  const auto& nccl = issues[0].communicator->library();
  std::vector<std::unique_lock<std::mutex>> uses;
  const auto issuing = [&](bool on) {
    for (const auto& [communicator, collective, stream] : issues) {
      {
        const std::lock_guard lock(communicator->mutex_);
        communicator->issuing_ = on ? After(collective.timeout_ms) : Deadline::max();
      }
      if (on) communicator->changed_.notify_all();
    }
  };
  const auto run = [&] {
    for (const auto& issue : issues) {
      uses.emplace_back(issue.communicator->use_);
      issue.communicator->Open();
    }
    issuing(true);
    nccl.Call(nccl.GroupStart, -1);
    try {
      for (const auto& [communicator, collective, stream] : issues) {
        communicator->driver_->Activate();
        communicator->Call(collective, stream);
      }
    } catch (const std::exception&) {
      (void)nccl.GroupEnd.pointer();
      throw;
    }
    const Result ended = nccl.GroupEnd.pointer();
    for (const auto& [communicator, collective, stream] : issues) {
      // Where the group has failed, this finds whose part of it has.
      communicator->Await(communicator->comm_, kNames[collective.kind], After(collective.timeout_ms));
    }
    nccl.Check(ended, nccl.GroupEnd.name, -1);
    for (const auto& [communicator, collective, stream] : issues)
      if (!captured) communicator->Expect(stream, collective.timeout_ms, kNames[collective.kind]);
  };
  const auto end = [&](const Error& why) {
    issuing(false);
    uses.clear();
    for (const auto& issue : issues) issue.communicator->Break(why);
    throw why;
  };
  try {
    run();
  } catch (const Error& error) {
    end(error);
  } catch (const std::exception& error) {
    end(Error(kUnhandledCudaError, error.what(), -1));
  }
  issuing(false);
}

void Communicator::Expect(Stream stream, double timeout_ms, const char* name) {
  driver_->Activate();
  auto passed = driver_->Mark(stream);
  {
    const std::lock_guard lock(mutex_);
    pending_.push_back({std::move(passed), After(timeout_ms), timeout_ms, name});
  }
  changed_.notify_all();
}

int Communicator::CreateScaledSum(double scalar, DataType type) {
  const std::lock_guard use(use_);
  const Comm comm = Open();
  Scalar value(scalar, type);
  int reduction = 0;
  library_.Call(library_.RedOpCreatePreMulSum, rank_, &reduction, static_cast<void*>(value.bytes), type, kHostScalar, comm);
  return reduction;
}

void Communicator::DestroyScaledSum(int reduction) {
  const std::lock_guard use(use_);
  library_.Call(library_.RedOpDestroy, rank_, reduction, Open());
}

}  // namespace rankmesh::nccl
