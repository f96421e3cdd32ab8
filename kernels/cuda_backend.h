// How kernels/device_factory.cc asks for a GPU. Implemented by kernels/cuda or, in a build without
// CUDA, by kernels/no_cuda; CMake chooses which one is linked.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace qserve::kernels {

struct CudaDeviceOptions {
  int ordinal = 0;
  int threads = 1;  // of the host, that pack weights
  FloatType activation_type = FloatType::kF16;
};

// GPUs that can be used; 0 where there is none or CUDA is not built in.
int CudaDeviceCount();

// Unsupported where CUDA is not built in or the GPU is not there or too old.
StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaDeviceOptions& options);

}  // namespace qserve::kernels
