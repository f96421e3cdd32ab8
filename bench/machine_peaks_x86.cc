// The peak loops of x86-64 by name.
#include "bench/machine_peaks.h"

namespace qserve::bench {

PeakLoop IntegerPeakLoop(const std::string& isa) {
  if (isa == "avx2") return avx2::PeakSteps;
  if (isa == "avxvnni") return avxvnni::PeakSteps;
  if (isa == "avx512vnni") return avx512vnni::PeakSteps;
  if (isa == "avx512amx") return avx512amx::PeakSteps;
  return nullptr;
}

}  // namespace qserve::bench
