// A build without CUDA: no GPU is found, and asking for one says why.
#include "kernels/cuda_backend.h"

namespace qserve::kernels {

int CudaDeviceCount() { return 0; }

StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaDeviceOptions& /*options*/) {
  return Unsupported("device cuda: this binary was built without CUDA; the device there is: cpu");
}

}  // namespace qserve::kernels
