// What a thread sanitizer is told of the emulated GPU, so that it reports races of kernels: who has
// waited for whom, what the emulator reads and writes for a thread, which memory begins a new life.
// One implementation for that sanitizer, chosen by CMake, and one that does nothing. The emulator's
// own sources are not instrumented: only kernels are judged. Used by the emulator alone.
#pragma once

#include <cstddef>

namespace qserve::kernels::cuda::emulator {

// What the calling thread has done so far comes before what another does after it has called
// HappensAfter with the same point.
void HappensBefore(void* point);
void HappensAfter(void* point);

// Accesses that the emulator makes for the calling thread.
void Reads(const void* from, size_t bytes);
void Writes(void* to, size_t bytes);

// Frees memory of malloc whatever its last users' order: they are known to be gone.
struct FreeForgotten {
  void operator()(void* memory) const;
};

}  // namespace qserve::kernels::cuda::emulator
