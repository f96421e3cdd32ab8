// Host memory by mmap, cut to the alignment of huge pages. Any thread.
#include "kernels/cpu/aligned_memory.h"

#include <sys/mman.h>

#include <cstddef>
#include <limits>

namespace qserve::kernels::cpu {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kHugePage = int64_t{2} << 20;

// The length that Allocate maps and Release unmaps for `bytes`.
size_t MappedBytes(int64_t bytes) {
  const int64_t unit = bytes >= kHugePage ? kHugePage : kPage;
  return static_cast<size_t>((bytes + unit - 1) / unit * unit);
}

void* Map(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return data == MAP_FAILED ? nullptr : data;
}

// Maps one huge page more than needed and gives back what lies outside the aligned part.
void* MapHuge(size_t bytes) {
  const auto huge = static_cast<size_t>(kHugePage);
  auto* base = static_cast<char*>(Map(bytes + huge));
  if (base == nullptr) return nullptr;
  const size_t before = (huge - reinterpret_cast<uintptr_t>(base) % huge) % huge;
  if (before != 0) munmap(base, before);
  if (before != huge) munmap(base + before + bytes, huge - before);
  madvise(base + before, bytes, MADV_HUGEPAGE);  // a wish: without it the memory is only slower
  return base + before;
}

}  // namespace

AlignedMemory AlignedMemory::Allocate(int64_t bytes) {
  AlignedMemory memory;
  if (bytes <= 0 || bytes > std::numeric_limits<int64_t>::max() / 2) return memory;
  memory.data_ = bytes >= kHugePage ? MapHuge(MappedBytes(bytes)) : Map(MappedBytes(bytes));
  if (memory.data_ != nullptr) memory.bytes_ = bytes;
  return memory;
}

AlignedMemory::~AlignedMemory() { Release(data_, bytes_); }

void AlignedMemory::Release(void* data, int64_t bytes) {
  if (data != nullptr) munmap(data, MappedBytes(bytes));
}

}  // namespace qserve::kernels::cpu
