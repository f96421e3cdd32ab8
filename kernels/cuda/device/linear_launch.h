// Launches the kernel of one format in the shape that was chosen: one function a format, each
// compiled by itself (kernels/cuda/linear_*.cu). Called by kernels/cuda/linear.cu.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/kernel.h"
#include "kernels/cuda/device/linear_params.h"

namespace qserve::kernels::cuda {

// Tokens of the block: 16, 32, 64, 128 or 256.
DeviceError LaunchLinearW4Group(StreamHandle stream, int tokens, const LinearParams& params);
DeviceError LaunchLinearW4Channel(StreamHandle stream, int tokens, const LinearParams& params);
DeviceError LaunchLinearW8(StreamHandle stream, int tokens, const LinearParams& params);
DeviceError LaunchLinearHalf(StreamHandle stream, int tokens, const LinearParams& params);

// Rounds m rows of fp32 to fp16 and pads them with zeros.
struct HalfRowsParams {
  const float* x = nullptr;
  int64_t x_stride = 0;
  int32_t columns = 0;
  int32_t rows = 0;
  uint32_t* out = nullptr;  // [rows][row_words], two values a word
  int32_t row_words = 0;
};
DeviceError LaunchHalfRows(StreamHandle stream, const HalfRowsParams& params);

}  // namespace qserve::kernels::cuda
