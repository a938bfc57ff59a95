// A CUDA device as this process has it: its context, its kernels, and memory of kinds that commands use.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "../engine/commands.h"
#include "driver.h"

namespace rankmesh::cuda {

class Device : public std::enable_shared_from_this<Device> {
 public:
  /** Opened once for as long as somebody uses it and it is not lost. Throws Unavailable where there is none of this number or no kernels for it. */
  static std::shared_ptr<Device> Open(int index);
  Device(const Device&) = delete;
  ~Device();

  /** Makes this device the one that calls of this thread are for; false where it is lost. Gives no errors. */
  bool TryEnter() const noexcept { return !lost_ && driver.cuCtxSetCurrent(context_) == kSuccess; }
  /** The same. Throws CudaError. */
  void Enter() const { driver.Check(driver.cuCtxSetCurrent(context_), "cuCtxSetCurrent"); }

  /** A kernel by the name it has in the kernels' file, ready to be given `shared_bytes` of dynamic shared memory. Of any thread. */
  FunctionHandle Kernel(const char* name, unsigned shared_bytes);

  /** This device may use memory of `peer` from now on. */
  void EnablePeer(const Device& peer);

  ContextHandle context() const { return context_; }
  DeviceHandle handle() const { return handle_; }

  /** The context is of no more use; what is freed has gone with it. Who opens the device next gets a new one. */
  void Lose() { lost_ = true; }
  bool lost() const { return lost_; }

  const Driver& driver;
  const DeviceInfo info;

 private:
  Device(const Driver& driver, int index);

  struct Function {
    FunctionHandle handle = nullptr;
    unsigned shared_bytes = 0;
  };

  std::atomic<bool> lost_ = false;
  DeviceHandle handle_ = 0;
  ContextHandle context_ = nullptr;
  /** The kernels' file holds several. */
  std::vector<ModuleHandle> modules_;
  std::mutex mutex_;
  /** By the name's address: names are constants. */
  std::unordered_map<const char*, Function> functions_;
};

/** Memory of the device, aligned to 256 bytes. */
struct DeviceBlock : engine::Block {
  /** Throws CudaError. */
  DeviceBlock(std::shared_ptr<Device> device, size_t bytes);
  DeviceBlock(const DeviceBlock&) = delete;
  /** No command that has yet to run uses it. */
  ~DeviceBlock();
  const std::shared_ptr<Device> device;
};

/** Memory of the system at a fixed place, which all devices reach. */
struct PinnedBlock : engine::Block {
  PinnedBlock(std::shared_ptr<Device> device, size_t bytes);
  PinnedBlock(const PinnedBlock&) = delete;
  ~PinnedBlock();
  const std::shared_ptr<Device> device;
};

/** Equal for processes of one machine, and for no others. */
std::string MachineName();

/** A file without a name, as other processes of the user on this machine find it while its owner has it. */
struct SharedFile {
  int64_t process;
  int64_t file;
  uint64_t inode;
};

/** Memory of the system in such a file, pinned: kernels of all devices that have the file use it. Each device maps it at a place of its own. */
struct SharedBlock : engine::Block {
  /** A new file of zeroes. Throws CudaError. */
  SharedBlock(std::shared_ptr<Device> device, size_t bytes);
  /** What another one has made. Throws CudaError, or Unavailable where it cannot be found. */
  SharedBlock(std::shared_ptr<Device> device, const SharedFile& shared, size_t bytes);
  SharedBlock(const SharedBlock&) = delete;
  ~SharedBlock();
  SharedFile Shared() const;
  const std::shared_ptr<Device> device;
  /** Where the host sees what kernels see at `data`. */
  std::byte* host = nullptr;

 private:
  /** Gives back what there is where it fails. */
  void Map(size_t size);
  void Drop();
  int file_ = -1;
};

/** Memory of another process. */
struct ImportedBlock : engine::Block {
  ImportedBlock(std::shared_ptr<Device> device, const IpcHandle& handle, size_t bytes);
  ImportedBlock(const ImportedBlock&) = delete;
  ~ImportedBlock();
  const std::shared_ptr<Device> device;
};

inline DevicePointer PointerOf(const void* address) { return reinterpret_cast<DevicePointer>(address); }

/** An event of a device. */
class Event {
 public:
  Event(std::shared_ptr<Device> device, unsigned flags);
  Event(const Event&) = delete;
  ~Event();
  void Record(StreamHandle stream) { device_->driver.Check(device_->driver.cuEventRecord(handle_, stream), "cuEventRecord"); }
  /** Whether all that was before it has run. Throws CudaError where that has failed. */
  bool Passed() const;
  EventHandle handle() const { return handle_; }

 private:
  const std::shared_ptr<Device> device_;
  EventHandle handle_ = nullptr;
};

}  // namespace rankmesh::cuda
