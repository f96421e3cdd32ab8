// How kernels are declared and launched. A kernel is a struct:
//
//   struct Scale {
//     struct Params { float* data; int count; float by; };
//     static constexpr int kThreads = 256;   // of a block
//     static constexpr int kMinBlocks = 2;   // that a multiprocessor should hold: bounds the
//     registers static QSERVE_DEVICE void Run(const Params& p) { ... }
//   };
//   Launch<Scale>(stream, {.x = blocks}, shared_bytes, params);
//
// Sources that launch (*.cu) are compiled by nvcc for a GPU and, unchanged, by the host compiler
// for the emulator.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/simt.h"
#include "kernels/cuda/stream.h"

#ifdef __CUDACC__
#include <cuda_runtime_api.h>

#include <atomic>
#endif

namespace qserve::kernels::cuda {

struct Grid {
  int x = 1;
  int y = 1;
  int z = 1;
};

#ifdef __CUDACC__

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    Entry(const __grid_constant__ typename Kernel::Params params) {
  Kernel::Run(params);
}

// Enqueues the kernel; the runtime's error code, 0 if it was accepted.
template <class Kernel>
DeviceError Launch(StreamHandle stream, Grid grid, int64_t shared_bytes,
                   const typename Kernel::Params& params) {
  constexpr int64_t kDefaultShared = 48 << 10;
  if (shared_bytes > kDefaultShared) {
    // Never less than before: a launch that is being recorded keeps what it asked for.
    static std::atomic<int64_t> most = 0;
    int64_t accepted = most.load();
    const int64_t wanted = accepted < shared_bytes ? shared_bytes : accepted;
    const cudaError_t error = cudaFuncSetAttribute(
        Entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(wanted));
    if (error != cudaSuccess) {
      cudaGetLastError();  // or the next launch would return it
      return static_cast<DeviceError>(error);
    }
    while (accepted < wanted && !most.compare_exchange_weak(accepted, wanted)) {
    }
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                    static_cast<unsigned>(grid.z));
  Entry<Kernel><<<blocks, Kernel::kThreads, static_cast<size_t>(shared_bytes),
                  static_cast<cudaStream_t>(stream)>>>(params);
  return static_cast<DeviceError>(cudaGetLastError());
}

#else

template <class Kernel>
DeviceError Launch(StreamHandle stream, Grid grid, int64_t shared_bytes,
                   const typename Kernel::Params& params) {
  return emulator::Enqueue(
      stream,
      {.grid = {grid.x, grid.y, grid.z}, .threads = Kernel::kThreads, .shared_bytes = shared_bytes},
      [params] { Kernel::Run(params); });
}

#endif

}  // namespace qserve::kernels::cuda
