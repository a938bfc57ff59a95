// Segments of POSIX shared memory. A lock is a byte of the file, held by the open file: it is gone with the process, be it a zombie.
#ifndef _WIN32
#include "segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace rankmesh {
namespace {

#ifdef F_OFD_SETLK
constexpr int kSetLock = F_OFD_SETLK;
constexpr int kGetLock = F_OFD_GETLK;
#else
constexpr int kSetLock = F_SETLK;
constexpr int kGetLock = F_GETLK;
#endif

SystemError Failure(int number, const std::string& what) { return {number, what + ": " + std::strerror(number)}; }

struct flock ByteLock(short type, size_t rank) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(rank);
  lock.l_len = 1;
  return lock;
}

int Allocate(int file, size_t bytes) {
#ifdef __linux__
  // Memory that is only promised would end a process with SIGBUS at its first use.
  int number;
  while ((number = posix_fallocate(file, 0, static_cast<off_t>(bytes))) == EINTR) {
  }
  return number;
#else
  return ftruncate(file, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
#endif
}

}  // namespace

Mapping::~Mapping() { munmap(data_, bytes_); }

std::unique_ptr<Segment> Segment::Create(const std::string& name, size_t bytes) {
  const int file = shm_open(("/" + name).c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) throw Failure(errno, "Cannot create the shared memory segment " + name);
  auto segment = std::unique_ptr<Segment>(new Segment(name, file));
  try {
    if (const int number = Allocate(file, bytes)) {
      const std::string advice = number == ENOSPC ? " (/dev/shm may be too small: see `df /dev/shm`; containers are given more by --shm-size)" : "";
      auto failure = Failure(number, "Cannot allocate " + std::to_string(bytes) + " bytes of shared memory for the segment " + name);
      failure.message += advice;
      throw failure;
    }
    segment->Map(bytes);
  } catch (const SystemError&) {
    segment->Unlink();
    throw;
  }
  return segment;
}

std::unique_ptr<Segment> Segment::Open(const std::string& name) {
  const int file = shm_open(("/" + name).c_str(), O_RDWR | O_CLOEXEC, 0);
  if (file < 0) throw Failure(errno, "Cannot open the shared memory segment " + name);
  auto segment = std::unique_ptr<Segment>(new Segment(name, file));
  struct stat status{};
  if (fstat(file, &status) != 0) throw Failure(errno, "Cannot inspect the shared memory segment " + name);
  if (status.st_uid != geteuid() || (status.st_mode & 077) != 0)
    throw SystemError{EPERM, "The shared memory segment " + name + " belongs to another user or is open to others; it is not used"};
  if (status.st_size == 0) throw SystemError{ENOENT, "The shared memory segment " + name + " is not complete yet"};
  segment->Map(static_cast<size_t>(status.st_size));
  return segment;
}

void Segment::Map(size_t bytes) {
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  if (data == MAP_FAILED) throw Failure(errno, "Cannot map " + std::to_string(bytes) + " bytes of the shared memory segment " + name_);
  mapping_ = std::make_shared<Mapping>(data, bytes);
}

void Segment::Claim(size_t rank) {
  auto lock = ByteLock(F_WRLCK, rank);
  if (fcntl(file_, kSetLock, &lock) != 0) {
    const int number = errno;
    if (number == EAGAIN || number == EACCES) throw SystemError{EBUSY, "Rank " + std::to_string(rank) + " of the segment " + name_ + " is taken"};
    throw Failure(number, "Cannot take the lock of rank " + std::to_string(rank) + " of the segment " + name_);
  }
  claims_.insert(rank);
}

bool Segment::Claimed(size_t rank) const {
  if (claims_.contains(rank)) return true;
  auto lock = ByteLock(F_WRLCK, rank);
  if (fcntl(file_, kGetLock, &lock) != 0) throw Failure(errno, "Cannot look at the lock of rank " + std::to_string(rank));
  return lock.l_type != F_UNLCK;
}

void Segment::Unlink() { shm_unlink(("/" + name_).c_str()); }

void Segment::Close() {
  // Closing alone would not do: the mapping keeps the open file, and so its locks.
  for (const size_t rank : claims_) {
    auto lock = ByteLock(F_UNLCK, rank);
    fcntl(file_, kSetLock, &lock);
  }
  claims_.clear();
  if (file_ >= 0) close(file_);
  file_ = -1;
}

}  // namespace rankmesh
#endif
