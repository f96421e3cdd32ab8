// Linears in full precision on a GPU: for calibrating on one and for comparing with, not for
// serving fast. Called by the CUDA backend on the thread that uses it; enqueues and returns.
#pragma once

#include "kernels/cuda/stream.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

// out[m][n] = sum over k, ascending, of x[m][k] * W[n][k] by fused multiply-adds in fp32, plus
// bias[n], rounded once to out's type. A row's bits depend on its x alone. All device memory.
struct FloatLinearLaunch {
  const void* weight = nullptr;  // [out.cols][x.cols] of weight_type
  FloatType weight_type = FloatType::kF32;
  const float* bias = nullptr;  // [out.cols] or null
  Activation x;                 // x.f32
  FloatMatrix out;              // out.rows >= 1
};

// The runtime's error code: 0 if everything was accepted.
DeviceError LaunchFloatLinear(StreamHandle stream, const FloatLinearLaunch& launch);

}  // namespace qserve::kernels::cuda
