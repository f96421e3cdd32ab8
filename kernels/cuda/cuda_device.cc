// Makes the backend of a real GPU: what kernels/device_factory.cc asks for in a build with CUDA.
#include <memory>
#include <utility>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda_backend.h"

namespace qserve::kernels {

StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaDeviceOptions& options) {
  StatusOr<std::unique_ptr<cuda::Runtime>> runtime = cuda::CreateCudaRuntime(options.ordinal);
  if (!runtime.ok()) return runtime.status();
  cuda::CudaBackendOptions chosen;
  chosen.activation_type = options.activation_type;
  chosen.threads = options.threads;
  chosen.memory.headroom_bytes = cuda::DefaultHeadroom((*runtime)->properties().memory_bytes);
  StatusOr<std::unique_ptr<cuda::CudaBackend>> backend =
      cuda::CudaBackend::Create(*std::move(runtime), chosen);
  if (!backend.ok()) return backend.status();
  return std::unique_ptr<Backend>(*std::move(backend));
}

}  // namespace qserve::kernels
