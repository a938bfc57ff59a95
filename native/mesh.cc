// Rounds among processes over gloo's connections: every rank sends straight to every other, so a round is one hop and names who is missing.
#include "mesh.h"

#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <new>

namespace rankmesh {
namespace {

using gloo::transport::UnboundBuffer;

/** Bytes that travel with their length; longer ones follow when the length is known. */
constexpr size_t kInline = 16384;
/** Bytes of an all-reduce that travel while those before them are combined. */
constexpr size_t kSegment = 512 * 1024;
/** For gloo, once all ranks have said that they are about to connect. */
constexpr auto kConnect = std::chrono::seconds(10);

/** Messages of one slot arrive in the order in which they were sent. */
enum Slot : uint64_t { kHead = 1, kBody, kScatter, kResult, kPair = 16 };

std::chrono::milliseconds Left(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
  return std::max(left, std::chrono::milliseconds(1));
}

/** One for each address: each has a thread of its own. */
std::shared_ptr<gloo::transport::Device> DeviceAt(const std::string& host) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<gloo::transport::Device>> devices;
  const std::lock_guard lock(mutex);
  auto device = devices[host].lock();
  if (!device) devices[host] = device = gloo::transport::tcp::CreateDevice(host.c_str());
  return device;
}

/** The store as gloo sees it. No rank connects before all are about to, so that gloo, which cannot be interrupted, waits for nobody. */
class ReadyStore : public gloo::rendezvous::Store {
 public:
  ReadyStore(int rank, int size, const MeshStore& store) : rank_(rank), size_(size), store_(store) {}

  void set(const std::string& key, const std::vector<char>& value) override { store_.set(key, value); }

  std::vector<char> get(const std::string& key) override {
    if (key.find_first_not_of("0123456789") != std::string::npos) return store_.get(key);  // no rank's addresses
    if (known_.empty()) {
      ForOthers([&](const std::string& peer) { known_[peer] = store_.get(peer); });
      store_.set("ready/" + std::to_string(rank_), {1});
      ForOthers([&](const std::string& peer) { store_.get("ready/" + peer); });
    }
    return known_.at(key);
  }

  void wait(const std::vector<std::string>&) override {}
  void wait(const std::vector<std::string>&, const std::chrono::milliseconds&) override {}

 private:
  template <typename F>
  void ForOthers(F visit) {
    for (int peer = 0; peer < size_; peer++)
      if (peer != rank_) visit(std::to_string(peer));
  }

  const int rank_;
  const int size_;
  const MeshStore& store_;
  std::map<std::string, std::vector<char>> known_;
};

/** Gloo of 2022 takes the store by reference, gloo of 2024 shares it. */
template <typename Context, typename Device>
void Connect(Context& context, const std::shared_ptr<gloo::rendezvous::Store>& store, Device& device) {
  if constexpr (requires { context.connectFullMesh(store, device); }) {
    context.connectFullMesh(store, device);
  } else {
    context.connectFullMesh(*store, device);
  }
}

}  // namespace

Bytes::Bytes(size_t length) : data(static_cast<std::byte*>(std::malloc(std::max<size_t>(1, length)))), length(length) {
  if (!data) throw std::bad_alloc();
}

struct Mesh::Head {
  Buffer buffer;
  struct {
    uint64_t length;
    uint64_t signature;
    std::byte bytes[kInline];
  } message;

  size_t Inline() const { return std::min<uint64_t>(message.length, kInline); }
  /** Writes a head; gives its size. */
  size_t Fill(const std::byte* from, uint64_t length, uint32_t signature) {
    message.length = length;
    message.signature = signature;
    if (length > 0) std::memcpy(message.bytes, from, Inline());
    return sizeof message - kInline + Inline();
  }
};

Mesh::Mesh(int rank, int size, const std::string& host, const MeshStore& store) : rank_(rank), size_(size) {
  auto device = DeviceAt(host);
  auto context = std::make_shared<gloo::rendezvous::Context>(rank, size);
  context->setTimeout(kConnect);
  Connect(*context, std::make_shared<ReadyStore>(rank, size, store), device);
  context_ = std::move(context);
  for (unsigned parity : {0u, 1u})
    for (int peer = 0; peer < size; peer++) {
      auto head = std::make_unique<Head>();
      head->buffer = Over(&head->message, sizeof head->message);
      heads_[parity].push_back(std::move(head));
    }
  ReceiveHeads(0);
}

Mesh::~Mesh() = default;

std::vector<Bytes> Mesh::Exchange(const std::byte* bytes, size_t length, Deadline deadline, uint32_t signature) {
  const unsigned parity = round_++ & 1;
  const std::unique_ptr<Head> head(new Head);
  const size_t filled = head->Fill(bytes, length, signature);
  head->buffer = Over(&head->message, filled);
  for (int peer : Peers()) head->buffer->send(peer, kHead);
  ReceiveHeads(parity ^ 1);  // of the next round: who is ahead need not wait for us
  std::vector<Awaited> awaited;
  for (int peer : Peers()) awaited.push_back({heads_[parity][peer]->buffer.get(), peer});
  AwaitReceived(awaited, deadline);
  for (int peer : Peers())
    if (heads_[parity][peer]->message.signature != signature) throw Mismatch();

  awaited.clear();
  std::vector<Bytes> result;
  std::vector<Buffer> bodies;
  for (int peer = 0; peer < size_; peer++) {
    const auto& from = *heads_[parity][peer];
    result.emplace_back(peer == rank_ ? 0 : from.message.length);
    if (peer == rank_) continue;
    std::memcpy(result[peer].data.get(), from.message.bytes, from.Inline());
    if (from.message.length <= kInline) continue;
    bodies.push_back(Over(result[peer].data.get() + kInline, from.message.length - kInline));
    bodies.back()->recv(peer, kBody);
    awaited.push_back({bodies.back().get(), peer});
  }
  Buffer body;
  if (length > kInline) {
    body = Over(bytes + kInline, length - kInline);
    for (int peer : Peers()) body->send(peer, kBody);
  }
  AwaitReceived(awaited, deadline);
  AwaitSent(*head->buffer, size_ - 1, deadline);
  if (body) AwaitSent(*body, size_ - 1, deadline);
  return result;
}

Bytes Mesh::ExchangePair(int peer, uint32_t tag, const std::byte* bytes, size_t length, Deadline deadline) {
  const uint64_t slot = kPair + 2 * uint64_t{tag};
  const std::unique_ptr<Head> mine(new Head);
  const std::unique_ptr<Head> theirs(new Head);
  theirs->buffer = Over(&theirs->message, sizeof theirs->message);
  theirs->buffer->recv(peer, slot);
  const size_t filled = mine->Fill(bytes, length, 0);
  mine->buffer = Over(&mine->message, filled);
  mine->buffer->send(peer, slot);
  AwaitReceived({{theirs->buffer.get(), peer}}, deadline);
  Bytes result(theirs->message.length);
  std::memcpy(result.data.get(), theirs->message.bytes, theirs->Inline());
  Buffer in;
  Buffer out;
  if (result.length > kInline) {
    in = Over(result.data.get() + kInline, result.length - kInline);
    in->recv(peer, slot + 1);
  }
  if (length > kInline) {
    out = Over(bytes + kInline, length - kInline);
    out->send(peer, slot + 1);
  }
  if (in) AwaitReceived({{in.get(), peer}}, deadline);
  AwaitSent(*mine->buffer, 1, deadline);
  if (out) AwaitSent(*out, 1, deadline);
  return result;
}

// Each rank combines one chunk, segment by segment, as soon as all others' have come, and sends the result to all others. A segment of a
// result comes only when this rank's operand of it has been received, so results may arrive where the operands lie.
void Mesh::AllReduce(Type type, Op op, std::byte* array, size_t count, Deadline deadline, uint32_t signature) {
  const size_t unit = SizeOf(type);
  std::vector<const std::byte*> parts(size_);
  if (count * unit <= kInline) {
    const auto others = Exchange(array, count * unit, deadline, signature);
    for (int peer = 0; peer < size_; peer++) {
      if (peer != rank_ && others[peer].length != count * unit) throw Mismatch();
      parts[peer] = peer == rank_ ? array : others[peer].data.get();
    }
    Combine(type, op, parts.data(), size_, array, count);
    return;
  }
  Exchange(nullptr, 0, deadline, signature);
  const auto start = [&](int peer) { return count * peer / size_ * unit; };
  const auto bytes_of = [&](int peer) { return start(peer + 1) - start(peer); };
  size_t segments = 0;
  for (int peer = 0; peer < size_; peer++) segments = std::max(segments, (bytes_of(peer) + kSegment - 1) / kSegment);
  const auto from = [&](int peer, size_t s) { return std::min(s * kSegment, bytes_of(peer)); };
  const auto length = [&](int peer, size_t s) { return from(peer, s + 1) - from(peer, s); };
  // Chunks differ by an element, so that of the last segment some ranks may have nothing.
  size_t sent = 0;
  const auto send = [&](UnboundBuffer& buffer, int to, uint64_t slot, int chunk, size_t s) {
    if (length(chunk, s) == 0) return;
    buffer.send(to, slot, start(chunk) + from(chunk, s), length(chunk, s));
    sent++;
  };

  const size_t own = bytes_of(rank_);
  if (parts_.length < own * (size_ - 1)) parts_ = Bytes(own * (size_ - 1));
  const auto all = Over(array, count * unit);
  std::vector<Buffer> operands(size_);
  std::vector<Buffer> results(size_);
  const auto peers = Peers();
  for (size_t i = 0; i < peers.size(); i++) {
    const int peer = peers[i];
    operands[peer] = Over(parts_.data.get() + i * own, own);
    results[peer] = Over(array + start(peer), bytes_of(peer));
  }
  for (size_t s = 0; s < segments; s++) {
    for (int peer : peers) {
      if (length(rank_, s) > 0) operands[peer]->recv(peer, kScatter, from(rank_, s), length(rank_, s));
      if (length(peer, s) > 0) results[peer]->recv(peer, kResult, from(peer, s), length(peer, s));
      send(*all, peer, kScatter, peer, s);
    }
  }
  std::vector<Awaited> awaited;
  for (int peer : peers) awaited.push_back({operands[peer].get(), peer});
  for (size_t s = 0; length(rank_, s) > 0; s++) {
    AwaitReceived(awaited, deadline);
    const size_t at = from(rank_, s);
    std::byte* out = array + start(rank_) + at;
    for (int peer = 0; peer < size_; peer++) {
      parts[peer] = peer == rank_ ? out : static_cast<const std::byte*>(operands[peer]->ptr) + at;
    }
    Combine(type, op, parts.data(), size_, out, length(rank_, s) / unit);
    for (int peer : peers) send(*all, peer, kResult, rank_, s);
  }
  for (size_t s = 0; s < segments; s++) {
    awaited.clear();
    for (int peer : peers)
      if (length(peer, s) > 0) awaited.push_back({results[peer].get(), peer});
    AwaitReceived(awaited, deadline);
  }
  AwaitSent(*all, sent, deadline);
}

void Mesh::Abort() {
  const std::lock_guard lock(mutex_);
  aborted_ = true;
  for (auto* buffer : waiting_) {
    buffer->abortWaitRecv();
    buffer->abortWaitSend();
  }
}

Mesh::Buffer Mesh::Over(const void* bytes, size_t length) {
  return context_->createUnboundBuffer(const_cast<void*>(bytes), length);
}

void Mesh::ReceiveHeads(unsigned parity) {
  for (int peer : Peers()) heads_[parity][peer]->buffer->recv(peer, kHead);
}

void Mesh::AwaitReceived(const std::vector<Awaited>& awaited, Deadline deadline) {
  for (size_t i = 0; i < awaited.size(); i++) {
    try {
      Await(*awaited[i].buffer, true, deadline);
    } catch (const std::exception& error) {
      std::vector<int> missing{awaited[i].peer};
      const std::string text = error.what();
      const bool timed_out = !aborted_ && Clock::now() >= deadline;
      for (i++; i < awaited.size(); i++) {
        try {
          Await(*awaited[i].buffer, true, Clock::now());
        } catch (const std::exception&) {
          missing.push_back(awaited[i].peer);
        }
      }
      Break(text, std::move(missing), timed_out);
    }
  }
}

void Mesh::AwaitSent(UnboundBuffer& buffer, size_t times, Deadline deadline) {
  try {
    for (size_t i = 0; i < times; i++) Await(buffer, false, deadline);
  } catch (const std::exception& error) {
    Break(error.what(), {}, !aborted_ && Clock::now() >= deadline);
  }
}

void Mesh::Await(UnboundBuffer& buffer, bool receives, Deadline deadline) {
  {
    const std::lock_guard lock(mutex_);
    if (aborted_) throw std::runtime_error("the group has been closed");
    waiting_.insert(&buffer);
  }
  const auto done = [&] {
    const std::lock_guard lock(mutex_);
    waiting_.erase(&buffer);
  };
  bool came = false;
  try {
    came = receives ? buffer.waitRecv(Left(deadline)) : buffer.waitSend(Left(deadline));
  } catch (...) {
    done();
    throw;
  }
  done();
  if (!came) throw std::runtime_error("the group has been closed");
}

void Mesh::Break(const std::string& why, std::vector<int> missing, bool timed_out) {
  Abort();  // threads of pairs that still wait
  throw MeshError(why, std::move(missing), timed_out);
}

std::vector<int> Mesh::Peers() const {
  std::vector<int> peers;
  for (int i = 1; i < size_; i++) peers.push_back((rank_ + i) % size_);  // each starts at another
  return peers;
}

}  // namespace rankmesh
