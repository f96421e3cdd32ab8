// Makes the backend that was asked for.
#include "kernels/device_factory.h"

#include <algorithm>
#include <thread>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/isa_choice.h"
#include "kernels/cuda_backend.h"

namespace qserve::kernels {

StatusOr<std::unique_ptr<Backend>> CreateBackend(const DeviceOptions& options) {
  if (options.device == "cuda" || (options.device == "auto" && CudaDeviceCount() > 0)) {
    if (options.linear_type != FloatType::kF32) {
      return Unsupported("full-precision linears in bf16 are for CPUs alone, and device " +
                         options.device + " is a GPU");
    }
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    return CreateCudaBackend({.ordinal = options.ordinal,
                              .threads = options.threads > 0 ? options.threads : std::max(cores, 1),
                              .activation_type = options.model_type == FloatType::kBf16
                                                     ? FloatType::kBf16
                                                     : FloatType::kF16});
  }
  if (options.device == "cpu" || options.device == "auto") {
    return cpu::CreateCpuBackend(options.threads, options.cpu_isa, options.linear_type);
  }
  return Unsupported("device " + options.device + " is unknown; known: auto cpu cuda");
}

std::vector<std::string> SupportedCpuIsas() { return cpu::SupportedIsas(); }

}  // namespace qserve::kernels
