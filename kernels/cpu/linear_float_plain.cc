// Full-precision products without a library: one dot product after the other. Pool's threads.
#include "kernels/cpu/linear_float.h"

namespace qserve::kernels::cpu {

void MultiplyFloat(const FloatLinear& weight, const LinearArgs& args, int64_t n0, int64_t n1) {
  for (int64_t m = 0; m < args.out.rows; ++m) {
    const float* x = args.x.f32 + m * args.x.f32_stride;
    for (int64_t n = n0; n < n1; ++n) {
      const float* w = weight.values.as<float>() + n * weight.k;
      float lanes[16] = {};
      for (int64_t k = 0; k < weight.k; ++k) lanes[k % 16] += w[k] * x[k];
      float sum = 0;
      for (const float lane : lanes) sum += lane;
      args.out.row(m)[n] = sum;
    }
  }
}

}  // namespace qserve::kernels::cpu
