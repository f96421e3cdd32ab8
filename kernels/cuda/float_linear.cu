// Launches linears in full precision, see float_linear.h.
#include "kernels/cuda/float_linear.h"

#include <cstdint>

#include "kernels/cuda/device/float_linear.h"
#include "kernels/cuda/device/kernel.h"

namespace qserve::kernels::cuda {
namespace {

template <FloatType kType>
DeviceError LaunchType(StreamHandle stream, const FloatLinearLaunch& launch) {
  using Kernel = FloatLinearKernel<kType>;
  const auto tiles = [](int64_t count) {
    return static_cast<int>((count + Kernel::kTile - 1) / Kernel::kTile);
  };
  typename Kernel::Params p;
  p.weight = launch.weight;
  p.bias = launch.bias;
  p.x = launch.x.f32;
  p.x_stride = launch.x.f32_stride;
  p.out = launch.out.data;
  p.out_stride = launch.out.stride;
  p.out_type = launch.out.type;
  p.m = launch.out.rows;
  p.n = launch.out.cols;
  p.k = launch.x.cols;
  return Launch<Kernel>(stream, {.x = tiles(p.m), .y = tiles(p.n)}, Kernel::kSharedBytes, p);
}

}  // namespace

DeviceError LaunchFloatLinear(StreamHandle stream, const FloatLinearLaunch& launch) {
  if (launch.weight_type == FloatType::kF32) return LaunchType<FloatType::kF32>(stream, launch);
  if (launch.weight_type == FloatType::kF16) return LaunchType<FloatType::kF16>(stream, launch);
  return LaunchType<FloatType::kBf16>(stream, launch);
}

}  // namespace qserve::kernels::cuda
