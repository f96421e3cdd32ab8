// ThreadSanitizer. The functions of `Annotate...` belong to its runtime, which declares them
// nowhere.
#include "kernels/cuda/emulator/race_check.h"

#include <sanitizer/tsan_interface.h>

#include <cstdlib>

extern "C" {
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void __tsan_read_range(void* from, unsigned long bytes);
void __tsan_write_range(void* to, unsigned long bytes);
}

namespace qserve::kernels::cuda::emulator {

void HappensBefore(void* point) { __tsan_release(point); }
void HappensAfter(void* point) { __tsan_acquire(point); }
void Reads(const void* from, size_t bytes) { __tsan_read_range(const_cast<void*>(from), bytes); }
void Writes(void* to, size_t bytes) { __tsan_write_range(to, bytes); }

// Memory that is freed while writes are ignored is not held against its users; whoever gets it next
// begins without a history.
void FreeForgotten::operator()(void* memory) const {
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  std::free(memory);
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
}

}  // namespace qserve::kernels::cuda::emulator
