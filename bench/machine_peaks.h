// What this machine can do at most: the denominators of bench/kernels_bench.cc, measured in the
// same run. The integer peak of an instruction set is a loop of its own multiply-accumulate
// sequence on registers alone.
#pragma once

#include <cstdint>
#include <string>

namespace qserve::bench {

// Runs `steps` turns of a register-only loop and returns the multiply-accumulates done. Null if the
// binary has no loop for it. `isa`: "avx2", "avxvnni", "avx512vnni", "avx512amx";
// the last in a process that has made a backend of it, which asks for the tile registers.
using PeakLoop = int64_t (*)(int64_t steps);
PeakLoop IntegerPeakLoop(const std::string& isa);

namespace avx2 {
int64_t PeakSteps(int64_t steps);
}
namespace avxvnni {
int64_t PeakSteps(int64_t steps);
}
namespace avx512vnni {
int64_t PeakSteps(int64_t steps);
}
namespace avx512amx {
int64_t PeakSteps(int64_t steps);
}

// GB/s of reading the `bytes` at `data` (more than any cache holds, written before), `threads`
// threads each a part of it: the best of pieces of 16 MiB, all read `repeats` times.
double ReadBandwidth(int threads, const void* data, int64_t bytes, int repeats);

// Multiply-accumulates of `loop` on all threads at once, times two: GOPS, best of `repeats`.
double IntegerPeak(PeakLoop loop, int threads, int repeats);

}  // namespace qserve::bench
