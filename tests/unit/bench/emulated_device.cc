#include "tests/unit/bench/emulated_device.h"

#include <memory>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/runtime_emulated.h"

namespace qserve::bench {

worker::exec::BackendFactory EmulatedDevice() {
  return [](const kernels::DeviceOptions&) -> kernels::StatusOr<std::unique_ptr<kernels::Backend>> {
    auto made = kernels::cuda::CudaBackend::Create(
        std::make_unique<kernels::cuda::EmulatedRuntime>(
            kernels::cuda::EmulatedDevice{.memory_bytes = int64_t{64} << 20}),
        {.memory = {.block_bytes = 0, .headroom_bytes = int64_t{1} << 20}});
    if (!made.ok()) return made.status();
    return std::unique_ptr<kernels::Backend>(*std::move(made));
  };
}

}  // namespace qserve::bench
