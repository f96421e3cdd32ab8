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

// Asks for as much of a multiprocessor's memory to be shared memory as lets it hold kMinBlocks
// blocks: left to itself the driver may keep more for L1, and fewer blocks are resident. A hint in
// percent, which the driver rounds up to what the device can do (164 KB on sm_80, 100 on sm_89, 228
// on sm_90); the rest stays L1. Once for each kernel and amount.
template <class Kernel>
void PreferSharedMemory(int64_t shared_bytes) {
  constexpr int64_t kReserved = 1 << 10;  // of each block, by the system
  static std::atomic<int64_t> most = 0;
  if (shared_bytes <= most.load(std::memory_order_relaxed)) return;
  int device = 0, all = 0;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) ==
          cudaSuccess &&
      all > 0) {
    const int64_t percent = (100 * Kernel::kMinBlocks * (shared_bytes + kReserved) + all - 1) / all;
    cudaFuncSetAttribute(Entry<Kernel>, cudaFuncAttributePreferredSharedMemoryCarveout,
                         static_cast<int>(percent < 100 ? percent : 100));
  }
  cudaGetLastError();  // a hint: nothing depends on it, and the next launch must not return it
  most.store(shared_bytes, std::memory_order_relaxed);
}

// Enqueues the kernel; the runtime's error code, 0 if it was accepted.
template <class Kernel>
DeviceError Launch(StreamHandle stream, Grid grid, int64_t shared_bytes,
                   const typename Kernel::Params& params) {
  // Up to here the driver's own choice holds enough blocks of the kernels there are.
  constexpr int64_t kSmallShared = 24 << 10;
  constexpr int64_t kDefaultShared = 48 << 10;
  if (shared_bytes > kSmallShared) PreferSharedMemory<Kernel>(shared_bytes);
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
