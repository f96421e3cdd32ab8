// What this machine's fp32 multiply-add units do at most: the denominator of
// bench/attention_bench.cc, measured in the same run. No state, any thread.
#pragma once

#include <string>

#include "bench/machine_peaks.h"

namespace qserve::bench {

// A loop of multiply-adds on registers alone, as wide as the attention of `isa` uses them. Null if
// the binary has none for it. Runs only where the CPU has the instructions.
PeakLoop FloatPeakLoop(const std::string& isa);

namespace avx2 {
int64_t FloatPeakSteps(int64_t steps);
}
namespace avx512 {
int64_t FloatPeakSteps(int64_t steps);
}

}  // namespace qserve::bench
