// The kernels behind kernels/cuda/peaks.h.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

inline constexpr int kPeakAccumulators = 8;
inline constexpr int kPeakThreads = 256;

struct PeakParams {
  int rounds = 1;
  int32_t* sink = nullptr;
};

// Operands that differ from lane to lane, as data do: power depends on them.
QSERVE_DEVICE uint32_t PeakOperand(int i) {
  return (static_cast<uint32_t>(ThreadId() + 257 * BlockX()) * 2654435761u) ^
         (static_cast<uint32_t>(i + 1) * 2246822519u);
}

struct Int8Peak {
  using Params = PeakParams;
  static constexpr int kThreads = kPeakThreads;
  static constexpr int kMinBlocks = 2;
  static QSERVE_DEVICE void Run(const Params& p) {
    uint32_t a[4], b[2];
    QSERVE_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = PeakOperand(i);
    QSERVE_UNROLL
    for (int i = 0; i < 2; ++i) b[i] = PeakOperand(4 + i);
    int32_t d[kPeakAccumulators][4] = {};
    for (int round = 0; round < p.rounds; ++round) {
      QSERVE_UNROLL
      for (int i = 0; i < kPeakAccumulators; ++i) MmaU8S8(d[i], a, b);
    }
    int32_t sum = 0;
    QSERVE_UNROLL
    for (int i = 0; i < kPeakAccumulators; ++i) sum ^= d[i][0] ^ d[i][1] ^ d[i][2] ^ d[i][3];
    if (p.rounds < 0) *p.sink = sum;
  }
};

struct HalfPeak {
  using Params = PeakParams;
  static constexpr int kThreads = kPeakThreads;
  static constexpr int kMinBlocks = 2;
  static QSERVE_DEVICE void Run(const Params& p) {
    uint32_t a[4], b[2];
    // Exponents near one: neither infinities nor zeros.
    QSERVE_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = (PeakOperand(i) & 0x83ff83ffu) | 0x38003800u;
    QSERVE_UNROLL
    for (int i = 0; i < 2; ++i) b[i] = (PeakOperand(4 + i) & 0x83ff83ffu) | 0x38003800u;
    float d[kPeakAccumulators][4] = {};
    for (int round = 0; round < p.rounds; ++round) {
      QSERVE_UNROLL
      for (int i = 0; i < kPeakAccumulators; ++i) MmaF16(d[i], a, b);
    }
    float sum = 0;
    QSERVE_UNROLL
    for (int i = 0; i < kPeakAccumulators; ++i) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
    if (p.rounds < 0) *p.sink = static_cast<int32_t>(BitsOf(sum));
  }
};

}  // namespace qserve::kernels::cuda
