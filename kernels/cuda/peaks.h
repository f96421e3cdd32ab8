// What a GPU can do at most, for the benchmarks to compare with: matrix instructions on registers
// alone, and copies. Called by bench/gpu_bench.cc.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream.h"

namespace qserve::kernels::cuda {

// `blocks` blocks of eight warps, each with eight independent accumulators, `rounds` times through
// them. `sink` (4 bytes) keeps the compiler from dropping the work and is never written.
struct PeakLaunch {
  int blocks = 1;
  int rounds = 1;
  int32_t* sink = nullptr;
};
// Multiply-adds of such a launch.
int64_t Int8PeakOperations(const PeakLaunch& launch);
int64_t HalfPeakOperations(const PeakLaunch& launch);
DeviceError LaunchInt8Peak(StreamHandle stream, const PeakLaunch& launch);
DeviceError LaunchHalfPeak(StreamHandle stream, const PeakLaunch& launch);

}  // namespace qserve::kernels::cuda
