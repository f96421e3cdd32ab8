// The launch itself, for the sources that compile one format each.
#pragma once

#include "kernels/cuda/device/kernel.h"
#include "kernels/cuda/device/linear_kernel.h"
#include "kernels/cuda/device/linear_launch.h"
#include "kernels/cuda/device/linear_shape.h"

namespace qserve::kernels::cuda {

template <class Format, class Shape>
DeviceError LaunchLinearShape(StreamHandle stream, const LinearParams& params) {
  using Kernel = LinearKernel<Format, Shape>;
  const Grid grid = {.x = params.row_blocks * params.token_blocks, .y = params.splits};
  return Launch<Kernel>(stream, grid, Kernel::kSharedBytes, params);
}

}  // namespace qserve::kernels::cuda
