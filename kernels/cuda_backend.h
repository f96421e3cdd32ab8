// How kernels/device_factory.cc asks for a GPU. Implemented by kernels/cuda or, in a build without
// CUDA, by kernels/no_cuda; CMake chooses which one is linked.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace qserve::kernels {

// GPUs that can be used; 0 where there is none or CUDA is not built in.
int CudaDeviceCount();

// Unsupported where CUDA is not built in or GPU `ordinal` is not there.
StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(int ordinal);

}  // namespace qserve::kernels
