// Launches the peak kernels.
#include "kernels/cuda/peaks.h"

#include "kernels/cuda/device/kernel.h"
#include "kernels/cuda/device/peaks.h"

namespace qserve::kernels::cuda {
namespace {

int64_t Instructions(const PeakLaunch& launch) {
  return int64_t{launch.blocks} * (kPeakThreads / 32) * launch.rounds * kPeakAccumulators;
}

}  // namespace

int64_t Int8PeakOperations(const PeakLaunch& launch) { return Instructions(launch) * 16 * 8 * 32; }
int64_t HalfPeakOperations(const PeakLaunch& launch) { return Instructions(launch) * 16 * 8 * 16; }

DeviceError LaunchInt8Peak(StreamHandle stream, const PeakLaunch& launch) {
  return Launch<Int8Peak>(stream, {.x = launch.blocks}, 0, {launch.rounds, launch.sink});
}
DeviceError LaunchHalfPeak(StreamHandle stream, const PeakLaunch& launch) {
  return Launch<HalfPeak>(stream, {.x = launch.blocks}, 0, {launch.rounds, launch.sink});
}

}  // namespace qserve::kernels::cuda
