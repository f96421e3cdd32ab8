// Real GPUs.
#include "kernels/cuda_backend.h"
#include "tests/gpu/gpu.h"

namespace qserve::kernels::testing {

int GpuCount() { return CudaDeviceCount(); }

bool GpuIsEmulated() { return false; }

StatusOr<std::unique_ptr<Backend>> MakeGpu(FloatType activation_type) {
  return CreateCudaBackend({.threads = 4, .activation_type = activation_type});
}

}  // namespace qserve::kernels::testing
