// Memory is given back when events say that it is of no more use, since the driver's own way would wait for kernels, and kernels may wait for us.
#include "engine.h"

#include <atomic>
#include <cstring>
#include <random>
#include <unordered_map>

#include "handover.h"

namespace rankmesh::cuda {
namespace {

constexpr char kMagic[8] = {'r', 'a', 'n', 'k', 'c', 'u', 'd', '3'};

uint64_t ThisProcess() {
  static const uint64_t number = [] {
    std::random_device random;
    return (uint64_t{random()} << 32) | random();
  }();
  return number;
}

/** What was exported, for engines of this process, and what of it other processes may ask for. */
struct Exports {
  struct Entry {
    std::weak_ptr<engine::Block> block;
    std::weak_ptr<Shareable> object;
  };
  std::mutex mutex;
  uint64_t next = 1;
  std::unordered_map<uint64_t, Entry> all;

  Entry Of(uint64_t number) {
    const std::lock_guard lock(mutex);
    const auto found = all.find(number);
    return found == all.end() ? Entry{} : found->second;
  }
};

Exports& TheExports() {
  static auto* const exports = new Exports;  // used by a thread that outlives static objects
  return *exports;
}

/** For another process; by a thread that has no part in blocks. */
int FileOf(uint64_t number) {
  const auto object = TheExports().Of(number).object.lock();
  if (!object) throw std::out_of_range("what is to be imported has been freed, or is no file");
  return object->File();
}

}  // namespace

Engine::Engine(int index) : device_(Device::Open(index)) {
  device_->Enter();
  blas = Blas::Open(device_, no_blas);
  traits.multiprocessors = device_->info.multiprocessors;
  traits.cublaslt = blas != nullptr;
  word_ = std::make_unique<PinnedBlock>(device_, sizeof(uint32_t));
  device_->driver.Check(device_->driver.cuStreamCreate(&side_, kStreamNonBlocking), "cuStreamCreate");
}

void Engine::Close() {
  if (!device_) return;
  const Driver& driver = device_->driver;
  if (device_->TryEnter())
    for (const auto& queue : queues)
      if (const auto handle = static_cast<Stream*>(queue.get())->handle()) driver.cuStreamSynchronize(handle);
  retired_.clear();
  meetings.clear();
  // What JavaScript still holds of streams is empty then.
  for (const auto& queue : queues) static_cast<Stream*>(queue.get())->Close();
  blocks.clear();
  blas.reset();
  word_.reset();
  for (Piece& piece : pieces_) piece = {};
  if (side_ && device_->TryEnter()) driver.cuStreamDestroy_v2(side_);
  device_.reset();
}

const std::shared_ptr<Device>& Engine::device() const {
  if (!device_) throw Unavailable("the device was disposed");
  return device_;
}

uint32_t Engine::Keep(std::shared_ptr<engine::Block> block) {
  blocks[next] = std::move(block);
  return next++;
}

uint32_t Engine::Allocate(size_t bytes) {
  device()->Enter();
  Release(false);
  try {
    return Keep(std::make_shared<DeviceBlock>(device_, bytes));
  } catch (const CudaError& error) {
    if (error.result != kOutOfMemory || retired_.empty()) throw;
    Release(true);
    return Keep(std::make_shared<DeviceBlock>(device_, bytes));
  }
}

uint32_t Engine::AllocateHost(size_t bytes) {
  device()->Enter();
  Release(false);
  return Keep(std::make_shared<PinnedBlock>(device_, bytes));
}

uint32_t Engine::AllocateShared(size_t bytes) {
  device()->Enter();
  Release(false);
  return Keep(std::make_shared<SharedBlock>(device_, bytes));
}

uint32_t Engine::AllocateBindable(size_t bytes, unsigned devices) {
  device()->Enter();
  Release(false);
  return Keep(std::make_shared<BindableBlock>(device_, WholeUnits(*device_, devices, bytes)));
}

uint32_t Engine::CreateMulticast(size_t bytes, unsigned devices) {
  device()->Enter();
  return Keep(std::make_shared<MulticastBlock>(device_, std::make_shared<Multicast>(*device_, devices, WholeUnits(*device_, devices, bytes))));
}

void Engine::BindMulticast(uint32_t multicast, uint32_t memory) {
  const auto all = std::dynamic_pointer_cast<MulticastBlock>(Of(multicast));
  const auto own = std::dynamic_pointer_cast<BindableBlock>(Of(memory));
  if (!all || !own || own->device != device_ || own->bytes != all->multicast->bytes)
    throw std::out_of_range("blocks " + std::to_string(multicast) + " and " + std::to_string(memory) + " are no multicast and memory for it");
  device()->Enter();
  all->Bind(*own);
}

void Engine::Free(uint32_t id) {
  const auto found = blocks.find(id);
  if (found == blocks.end()) return;
  std::shared_ptr<void> freed = std::move(found->second);
  blocks.erase(found);
  Retire(std::move(freed));
}

void Engine::Retire(std::shared_ptr<void> unused) {
  if (!device_) return;
  device_->TryEnter();
  if (retired_.empty() || retired_.back().submits != submits_) {
    Retired retired{{}, {}, submits_};
    try {
      for (const auto& queue : queues) {
        if (!static_cast<Stream*>(queue.get())->handle()) continue;
        retired.events.push_back(std::make_unique<Event>(device_, kEventUntimed));
        retired.events.back()->Record(static_cast<Stream*>(queue.get())->handle());
      }
    } catch (const CudaError& error) {
      // Nothing runs any more.
      Fail(error, *device_);
      retired.events.clear();
    }
    retired_.push_back(std::move(retired));
  }
  retired_.back().unused.push_back(std::move(unused));
  Release(false);
}

void Engine::Release(bool all) {
  while (!retired_.empty()) {
    for (const auto& event : retired_.front().events) {
      if (all) device_->driver.cuEventSynchronize(event->handle());
      else if (device_->driver.cuEventQuery(event->handle()) == kNotReady) return;
    }
    retired_.pop_front();
    // What went with it may have been another device's, imported, and has made that one current.
    device_->TryEnter();
  }
}

const std::shared_ptr<engine::Block>& Engine::Of(uint32_t id) const {
  const auto found = blocks.find(id);
  if (found == blocks.end()) throw std::out_of_range("there is no block " + std::to_string(id));
  return found->second;
}

std::byte* Engine::At(uint32_t id, size_t offset, size_t bytes) const {
  const auto& block = Of(id);
  if (offset > block->bytes || bytes > block->bytes - offset)
    throw std::out_of_range(std::to_string(bytes) + " bytes at " + std::to_string(offset) + " pass the end of block " + std::to_string(id));
  return block->data + offset;
}

std::shared_ptr<Stream> Engine::NewStream() {
  device()->Enter();
  auto stream = std::make_shared<Stream>(*this);
  queues.push_back(stream);
  return stream;
}

void Engine::Leave(std::shared_ptr<Stream> stream) {
  Stream* const left = stream.get();
  Retire(std::shared_ptr<void>(left, [kept = std::move(stream)](void*) { kept->Close(); }));
}

Exported Engine::Export(uint32_t id) const {
  Exported exported{};
  std::memcpy(exported.magic, kMagic, sizeof kMagic);
  if (const auto shared = std::dynamic_pointer_cast<SharedBlock>(Of(id))) {
    exported.kind = Exported::kShared;
    exported.shared = shared->Shared();
    exported.bytes = shared->bytes;
    return exported;
  }
  const auto block = Of(id);
  const auto shareable = std::dynamic_pointer_cast<ShareableBlock>(block);
  const bool is_own = shareable ? !std::dynamic_pointer_cast<FarBlock>(block) : std::dynamic_pointer_cast<DeviceBlock>(block) != nullptr;
  if (!is_own) throw std::out_of_range("block " + std::to_string(id) + " is none of this device's own");
  device_->Enter();
  exported.process = ThisProcess();
  exported.device = device_->info.uuid;
  exported.bytes = block->bytes;
  if (const auto all = std::dynamic_pointer_cast<MulticastBlock>(block)) exported.bytes = all->multicast->bytes;
  {
    Exports& exports = TheExports();
    const std::lock_guard lock(exports.mutex);
    std::erase_if(exports.all, [](const auto& entry) { return entry.second.block.expired(); });
    exported.ticket.number = exports.next++;
    exports.all[exported.ticket.number] = {block, shareable ? shareable->object : nullptr};
  }
  if (!shareable) {
    exported.kind = Exported::kPlain;
    exported.result = device_->driver.cuIpcGetMemHandle(&exported.handle, PointerOf(block->data));
    return exported;
  }
  exported.kind = std::dynamic_pointer_cast<MulticastBlock>(block) ? Exported::kMulticast : Exported::kBindable;
  const std::string& desk = DeskOf(FileOf);
  std::memcpy(exported.ticket.desk, desk.data(), std::min(desk.size(), sizeof exported.ticket.desk - 1));
  shareable->object->Describe(exported.ticket);
  return exported;
}

uint32_t Engine::Import(const Exported& exported) {
  const Driver& driver = device()->driver;
  if (std::memcmp(exported.magic, kMagic, sizeof kMagic) != 0) throw std::out_of_range("what is to be imported was not exported by this version");
  device_->Enter();
  Release(false);
  if (exported.kind == Exported::kShared) return Keep(std::make_shared<SharedBlock>(device_, exported.shared, exported.bytes));
  int index = 0;
  while (index < driver.devices() && std::memcmp(InfoOf(driver, index).uuid.bytes, exported.device.bytes, sizeof(Uuid)) != 0) index++;
  const std::string from = index < driver.devices() ? "CUDA device " + std::to_string(index) : "a CUDA device that this process does not see";
  // Of memory that is handed over, the driver says it when it is mapped: devices may be no peers, and joined by NVLink all the same.
  if (exported.kind == Exported::kPlain && index < driver.devices() && !CanAccessPeer(index))
    throw Unavailable("CUDA device " + std::to_string(device_->info.index) + " cannot access memory of " + from);
  if (exported.process != ThisProcess()) return Keep(ImportFar(exported, from));
  const auto block = TheExports().Of(exported.ticket.number).block.lock();
  if (!block) throw std::out_of_range("what is to be imported has been freed");
  if (const auto all = std::dynamic_pointer_cast<MulticastBlock>(block)) return Keep(std::make_shared<MulticastBlock>(device_, all->multicast));
  if (const auto bindable = std::dynamic_pointer_cast<BindableBlock>(block)) {
    if (bindable->device != device_) bindable->Allow(*device_);
  } else if (const auto plain = std::dynamic_pointer_cast<DeviceBlock>(block); plain && plain->device != device_) {
    device_->EnablePeer(*plain->device);
  }
  return Keep(block);
}

std::shared_ptr<engine::Block> Engine::ImportFar(const Exported& exported, const std::string& from) const {
  const Driver& driver = device_->driver;
  switch (exported.kind) {
    case Exported::kMulticast:
      return std::make_shared<MulticastBlock>(device_, std::make_shared<Multicast>(driver, exported.ticket, exported.bytes));
    case Exported::kBindable: return std::make_shared<FarBlock>(device_, exported.ticket, exported.bytes);
    default:
      driver.Check(exported.result, "cuIpcGetMemHandle, called by the process that exports memory of " + from);
      return std::make_shared<ImportedBlock>(device_, exported.handle, exported.bytes);
  }
}

bool Engine::CanAccessPeer(int index) const {
  if (index == device()->info.index) return true;
  const Driver& driver = device_->driver;
  DeviceHandle self = 0, peer = 0;
  int can = 0;
  driver.Check(driver.cuDeviceGet(&self, device_->info.index), "cuDeviceGet");
  driver.Check(driver.cuDeviceGet(&peer, index), "cuDeviceGet");
  driver.Check(driver.cuDeviceCanAccessPeer(&can, self, peer), "cuDeviceCanAccessPeer");
  return can != 0;
}

void Engine::Poke(uint32_t id, size_t offset, uint32_t word) {
  std::byte* const at = At(id, offset, sizeof word);
  if (const auto shared = std::dynamic_pointer_cast<SharedBlock>(Of(id))) {
    std::atomic_ref(*reinterpret_cast<uint32_t*>(shared->host + offset)).store(word, std::memory_order_release);
    return;
  }
  const Driver& driver = device()->driver;
  device_->Enter();
  std::memcpy(word_->data, &word, sizeof word);
  driver.Check(driver.cuMemcpyAsync(PointerOf(at), PointerOf(word_->data), sizeof word, side_), "cuMemcpyAsync");
  driver.Check(driver.cuStreamSynchronize(side_), "cuStreamSynchronize");
}

void Engine::FillAtOnce(uint32_t id, size_t offset, size_t bytes, unsigned char value) {
  std::byte* const at = At(id, offset, bytes);
  if (const auto shared = std::dynamic_pointer_cast<SharedBlock>(Of(id))) {
    std::memset(shared->host + offset, value, bytes);
    return;
  }
  const Driver& driver = device()->driver;
  if (bytes == 0) return;
  device_->Enter();
  driver.Check(driver.cuMemsetD8Async(PointerOf(at), value, bytes, side_), "cuMemsetD8Async");
  driver.Check(driver.cuStreamSynchronize(side_), "cuStreamSynchronize");
}

size_t Engine::FreeBytes() const {
  size_t free = 0, total = 0;
  device()->Enter();
  device_->driver.Check(device_->driver.cuMemGetInfo_v2(&free, &total), "cuMemGetInfo");
  return free;
}

Engine::Piece& Engine::NextPiece() {
  Piece& piece = pieces_[next_piece_];
  next_piece_ = 1 - next_piece_;
  if (!piece.block) {
    piece.block = std::make_unique<PinnedBlock>(device_, kPieceBytes);
    piece.used = std::make_unique<Event>(device_, kEventUntimed);
  } else {
    device_->driver.Check(device_->driver.cuEventSynchronize(piece.used->handle()), "cuEventSynchronize");
  }
  return piece;
}

void Engine::Fail(const CudaError& error, Device& device) {
  const std::lock_guard lock(mutex_);
  if (!failure_) failure_ = error.what();
  if (error.Lasting()) device.Lose();
}

std::optional<std::string> Engine::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

}  // namespace rankmesh::cuda
