// Linears with fp16 weights in one fixed order over K: the fp16 lm_head. Its activations come as
// fp32 and are rounded first.
#include "kernels/cuda/device/linear_launch_shape.h"

namespace qserve::kernels::cuda {
namespace {

struct HalfRows {
  using Params = HalfRowsParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  static QSERVE_DEVICE void Run(const Params& p) {
    const int word = BlockY() * kThreads + ThreadId();
    if (word >= p.row_words) return;
    const float* row = p.x + BlockX() * p.x_stride;
    const float low = 2 * word < p.columns ? row[2 * word] : 0.0f;
    const float high = 2 * word + 1 < p.columns ? row[2 * word + 1] : 0.0f;
    p.out[static_cast<int64_t>(BlockX()) * p.row_words + word] = HalfPair(low, high);
  }
};

}  // namespace

DeviceError LaunchHalfRows(StreamHandle stream, const HalfRowsParams& params) {
  const int blocks = (params.row_words + HalfRows::kThreads - 1) / HalfRows::kThreads;
  return Launch<HalfRows>(stream, {.x = params.rows, .y = blocks}, 0, params);
}

DeviceError LaunchLinearHalf(StreamHandle stream, int tokens, const LinearParams& params) {
  switch (tokens) {
    case 16:
      return LaunchLinearShape<Half, LinearD16<true>>(stream, params);
    case 32:
      return LaunchLinearShape<Half, LinearS32<true>>(stream, params);
    case 64:
      return LaunchLinearShape<Half, LinearS64<true>>(stream, params);
    default:
      return LaunchLinearShape<Half, LinearM128<true>>(stream, params);
  }
}

}  // namespace qserve::kernels::cuda
