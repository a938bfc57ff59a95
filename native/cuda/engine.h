// The CUDA engine: memory and streams of one device by number, for the thread that made it. Without JavaScript, which engine_node.cc adds.
#pragma once
#include <algorithm>
#include <deque>
#include <mutex>
#include <optional>

#include "cublas.h"
#include "multicast.h"
#include "stream.h"

namespace rankmesh::cuda {

/** What another rank is given of a block, in this process or in another one; data. */
struct Exported {
  enum Kind : int32_t { kPlain, kBindable, kMulticast, kShared };
  char magic[8];
  Kind kind;
  /** Of kShared, which is memory of the system; the others are a device's. */
  SharedFile shared;
  /** That exports. */
  uint64_t process;
  Uuid device;
  uint64_t bytes;
  /** Of kPlain: whether `handle` is one, what cuIpcGetMemHandle gave. */
  int32_t result;
  IpcHandle handle;
  /** By its number, this process knows the block; what else there is is for others. */
  Ticket ticket;
};

class Engine final : public engine::Registry {
 public:
  /** Throws Unavailable, or CudaError. */
  explicit Engine(int index);
  Engine(const Engine&) = delete;
  ~Engine() override { Close(); }
  /** Waits for what runs, and gives everything back. What is submitted later is dropped. */
  void Close();

  std::shared_ptr<engine::Meeting> NewMeeting(uint32_t members) override { return std::make_shared<Gathering>(members); }

  /** A number for new memory. Throws CudaError. */
  uint32_t Allocate(size_t bytes);
  uint32_t AllocateHost(size_t bytes);
  uint32_t AllocateShared(size_t bytes);
  /** Memory of the device that others can have by a handle, and that can be bound to a multicast of so many devices; 0 for none. */
  uint32_t AllocateBindable(size_t bytes, unsigned devices);
  /** A multicast, and of it this device, the first one; the others import it, in whatever process. Throws CudaError. */
  uint32_t CreateMulticast(size_t bytes, unsigned devices);
  /** Once all devices have it. Throws CudaError. */
  void BindMulticast(uint32_t multicast, uint32_t memory);
  /** Takes memory back once what has been submitted has run. */
  void Free(uint32_t id);
  /** As Free, of anything that what has been submitted may use. */
  void Retire(std::shared_ptr<void> unused);
  /** The bytes [offset, offset + bytes) of a block. Throws std::out_of_range where they are not there. */
  std::byte* At(uint32_t id, size_t offset, size_t bytes) const;

  std::shared_ptr<Stream> NewStream();
  /** Nobody gives the stream anything more: once what it has been given has run, all that is left of it is its number. */
  void Leave(std::shared_ptr<Stream> stream);
  /** Runs what gives commands to streams; where it fails, the device has failed, and later ones are dropped. Throws engine::BadCommand. */
  template <typename Work>
  void Submit(Work work) {
    submits_++;
    if (!device_ || failure()) return;
    try {
      device_->Enter();
      Release(false);
      work();
    } catch (const CudaError& error) {
      Fail(error, *device_);
    }
  }

  Exported Export(uint32_t id) const;
  /** Throws CudaError, or Unavailable where this device cannot access the memory. */
  uint32_t Import(const Exported& exported);
  bool CanAccessPeer(int index) const;

  /** Writes 32 bits past all streams, not by kernels: those may be waiting for it. */
  void Poke(uint32_t id, size_t offset, uint32_t word);
  /** At once; waits until it is done. */
  void FillAtOnce(uint32_t id, size_t offset, size_t bytes, unsigned char value);
  size_t FreeBytes() const;

  /** Puts `from` piece by piece into pinned memory, which `use` gives to a stream and then records `used`. */
  template <typename Use>
  void ForPieces(const std::byte* from, size_t bytes, Use use) {
    for (size_t at = 0; at < bytes; at += kPieceBytes) {
      Piece& piece = NextPiece();
      const size_t length = std::min(kPieceBytes, bytes - at);
      std::copy_n(from + at, length, piece.block->data);
      use(piece.block->data, at, length, *piece.used);
    }
  }

  /** Notes what has failed, the first time. Of any thread, as the next. */
  void Fail(const CudaError& error, Device& device);
  /** What has failed. */
  std::optional<std::string> failure() const;

  /** Throws Unavailable once this is closed. */
  const std::shared_ptr<Device>& device() const;

  std::unique_ptr<Blas> blas;
  /** Why there is no `blas`. */
  std::string no_blas;
  Traits traits;

 private:
  static constexpr size_t kPieceBytes = size_t{4} << 20;

  /** Pinned memory that is on its way to the device until `used` has passed. */
  struct Piece {
    std::unique_ptr<PinnedBlock> block;
    std::unique_ptr<Event> used;
  };
  /** What nobody has any more, until the events have passed. */
  struct Retired {
    std::vector<std::shared_ptr<void>> unused;
    std::vector<std::unique_ptr<Event>> events;
    uint64_t submits;
  };

  uint32_t Keep(std::shared_ptr<engine::Block> block);
  /** What another process exports, of a device called `from`. */
  std::shared_ptr<engine::Block> ImportFar(const Exported& exported, const std::string& from) const;
  /** Lets go of what is retired and no more used; of all, by waiting, with `all`. */
  void Release(bool all);
  Piece& NextPiece();
  const std::shared_ptr<engine::Block>& Of(uint32_t id) const;

  /** Null once this is closed. */
  std::shared_ptr<Device> device_;
  StreamHandle side_ = nullptr;
  std::unique_ptr<PinnedBlock> word_;
  Piece pieces_[2];
  size_t next_piece_ = 0;
  std::deque<Retired> retired_;
  uint64_t submits_ = 0;
  mutable std::mutex mutex_;
  std::optional<std::string> failure_;
};

}  // namespace rankmesh::cuda
