// Launches the linear operation on a GPU. Called by the CUDA backend on the thread that uses it;
// enqueues and returns.
#pragma once

#include <cstdint>

#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/stream.h"
#include "kernels/quant/gpu_weight.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

// out[m][n] as LinearArgs (kernels/backend.h) says, m = out.rows >= 1, for the formats that
// HasGpuOrder. x.q for int8 formats, its padding zeros, with the weight's lead; x.f32 for
// kHalfFixedOrder, rounded to fp16 on the way. All device memory; the weight, x.q, sums and scratch
// are aligned to 256 bytes (x.q to 16).
struct LinearLaunch {
  GpuWeightLayout layout;
  const void* weight = nullptr;  // layout.bytes
  Activation x;
  FloatMatrix out;
  LinearChoice choice;      // made for this layout and out.rows
  void* sums = nullptr;     // choice.sums_bytes, all zero; all zero again afterwards
  void* scratch = nullptr;  // choice.scratch_bytes
};

// The runtime's error code: 0 if everything was accepted.
DeviceError LaunchLinear(StreamHandle stream, const LinearLaunch& launch);

}  // namespace qserve::kernels::cuda
