// Integer peak of AMX: four tiles of sums, each the product of its own pair of four others, as the
// kernel has them. The process has been granted the tile registers: the kernels' own choice of AMX
// asks for them.
#include <cstdint>

#include "bench/machine_peaks.h"
#include "kernels/amx_configuration.h"

namespace qserve::bench::avx512amx {
namespace {

constexpr kernels::TileConfiguration kConfiguration;

}  // namespace

int64_t PeakSteps(int64_t steps) {
  constexpr int64_t kStepsPerTurn = 4;
  asm volatile(
      "ldtilecfg %0\n\t"
      "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"
      "tilezero %%tmm4\n\ttilezero %%tmm5\n\ttilezero %%tmm6\n\ttilezero %%tmm7"
      :
      : "m"(kConfiguration));
  // The compiler knows nothing of tile registers and so leaves them alone. Fewer turns than others
  // take steps: each is longer.
  for (int64_t i = 0; i < steps / kStepsPerTurn; ++i) {
    asm volatile(
        "tdpbssd %tmm6, %tmm4, %tmm0\n\t"
        "tdpbssd %tmm7, %tmm4, %tmm1\n\t"
        "tdpbssd %tmm6, %tmm5, %tmm2\n\t"
        "tdpbssd %tmm7, %tmm5, %tmm3");
  }
  asm volatile("tilerelease");
  return steps / kStepsPerTurn * 4 * 16 * 16 * 64;
}

}  // namespace qserve::bench::avx512amx
