// The emulated GPU for the benchmarks' tests; null in a build for real ones, whose kernels have the
// same names. Two implementations, chosen by CMake.
#pragma once

#include "worker/exec/rank.h"

namespace qserve::bench {

worker::exec::BackendFactory EmulatedDevice();

}  // namespace qserve::bench
