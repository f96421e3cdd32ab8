// The emulated GPU.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/runtime_emulated.h"
#include "tests/gpu/gpu.h"

namespace qserve::kernels::testing {

int GpuCount() { return 1; }

bool GpuIsEmulated() { return true; }

StatusOr<std::unique_ptr<Backend>> MakeGpu(FloatType activation_type) {
  auto made =
      cuda::CudaBackend::Create(std::make_unique<cuda::EmulatedRuntime>(cuda::EmulatedDevice{}),
                                {.activation_type = activation_type});
  if (!made.ok()) return made.status();
  return std::unique_ptr<Backend>(*std::move(made));
}

}  // namespace qserve::kernels::testing
