// Launches linears in full precision, see float_linear.h.
#include "kernels/cuda/float_linear.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/device/float_linear.h"
#include "kernels/cuda/device/kernel.h"

namespace qserve::kernels::cuda {
namespace {

constexpr int64_t kMostGridY = 65535;

template <FloatType kType>
DeviceError LaunchType(StreamHandle stream, const FloatLinearLaunch& launch) {
  using Kernel = FloatLinearKernel<kType>;
  const auto tiles = [](int64_t count) { return (count + Kernel::kTile - 1) / Kernel::kTile; };
  // Rows beyond a grid's second dimension have launches of their own.
  for (int64_t first = 0; first < launch.out.rows; first += kMostGridY * Kernel::kTile) {
    typename Kernel::Params p;
    p.weight = launch.weight;
    p.bias = launch.bias;
    p.x = launch.x.f32 + first * launch.x.f32_stride;
    p.x_stride = launch.x.f32_stride;
    p.out = static_cast<uint8_t*>(launch.out.data) +
            first * launch.out.stride * BytesOf(launch.out.type);
    p.out_stride = launch.out.stride;
    p.out_type = launch.out.type;
    p.m = std::min(launch.out.rows - first, kMostGridY * Kernel::kTile);
    p.n = launch.out.cols;
    p.k = launch.x.cols;
    const Grid grid = {.x = static_cast<int>(tiles(p.n)), .y = static_cast<int>(tiles(p.m))};
    if (const DeviceError error = Launch<Kernel>(stream, grid, Kernel::kSharedBytes, p); error != 0)
      return error;
  }
  return 0;
}

}  // namespace

DeviceError LaunchFloatLinear(StreamHandle stream, const FloatLinearLaunch& launch) {
  if (launch.weight_type == FloatType::kF32) return LaunchType<FloatType::kF32>(stream, launch);
  if (launch.weight_type == FloatType::kF16) return LaunchType<FloatType::kF16>(stream, launch);
  return LaunchType<FloatType::kBf16>(stream, launch);
}

}  // namespace qserve::kernels::cuda
