// Blocks of the system's memory.
#include "commands.h"

#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace rankmesh::cpu {
namespace {

/** Large blocks begin at a page of this size, so that the system may map them by such pages. */
constexpr size_t kHugePage = 1 << 21;

size_t AlignmentOf(size_t bytes) { return bytes >= kHugePage ? kHugePage : 64; }

}  // namespace

HostBlock::HostBlock(size_t size) {
  data = static_cast<std::byte*>(::operator new[](size, std::align_val_t(AlignmentOf(size))));
  bytes = size;
#ifdef __linux__
  if (bytes >= kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
}

HostBlock::~HostBlock() { ::operator delete[](data, std::align_val_t(AlignmentOf(bytes))); }

}  // namespace rankmesh::cpu
