// The multiply-add loops of x86-64 by name.
#include "bench/float_peak.h"

namespace qserve::bench {

PeakLoop FloatPeakLoop(const std::string& isa) {
  if (isa == "avx2" || isa == "avxvnni") return avx2::FloatPeakSteps;
  if (isa == "avx512vnni" || isa == "avx512amx") return avx512::FloatPeakSteps;
  return nullptr;
}

}  // namespace qserve::bench
