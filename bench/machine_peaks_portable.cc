// No peak loops are written for this architecture. CMake takes machine_peaks_x86.cc in its place on
// x86-64.
#include "bench/machine_peaks.h"

namespace qserve::bench {

PeakLoop IntegerPeakLoop(const std::string& /*isa*/) { return nullptr; }

}  // namespace qserve::bench
