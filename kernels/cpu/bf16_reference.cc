// bf16 products as loops: the arithmetic of bf16_panel.h, one product after the other. Executor's
// thread and the pool's.
#include <cmath>

#include "kernels/cpu/bf16_panel.h"

namespace qserve::kernels::cpu::reference {
namespace {

constexpr Bf16Kernels kKernels = {.tokens = 1, .multiply = {nullptr, &MultiplyBf16Panel}};

}  // namespace

void MultiplyBf16Panel(const Bf16Product& p) {
  for (int64_t step = 0; step < p.steps; ++step) {
    const float* x = p.x + step * kBf16Columns;
    const uint16_t* w = p.w + step * kBf16Tile;
    for (int64_t row = 0; row < kPanelRows; ++row) {
      float sums[2] = {};
      for (int64_t k = 0; k < kBf16Columns; ++k) {
        const float weight = Bf16ToFloat(w[k / 2 * kPanelRows * 2 + row * 2 + k % 2]);
        sums[k % 2] = std::fma(x[k], weight, sums[k % 2]);
      }
      p.c[row] = p.c[row] + (sums[0] + sums[1]);
    }
  }
}

Status LinearBf16(OpContext& context, const LinearArgs& args) {
  return MultiplyBf16(context, args, kKernels);
}

}  // namespace qserve::kernels::cpu::reference
