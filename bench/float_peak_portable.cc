// Architectures without a multiply-add loop of their own.
#include "bench/float_peak.h"

namespace qserve::bench {

PeakLoop FloatPeakLoop(const std::string&) { return nullptr; }

}  // namespace qserve::bench
