// The two types that host code, launches and the emulator share without knowing CUDA's headers.
#pragma once

namespace qserve::kernels::cuda {

// A cudaStream_t, or an emulator::Stream*. Work on one runs in order.
using StreamHandle = void*;

// A cudaError_t: 0 is success; Runtime::ErrorText says what others mean.
using DeviceError = int;

}  // namespace qserve::kernels::cuda
