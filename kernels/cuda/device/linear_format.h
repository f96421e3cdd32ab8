// How the weight formats differ inside a linear's kernel: bytes of a tile, what accumulates, and
// how sixteen loaded bytes become the registers of an `mma` fragment. The order of the bytes is
// that of kernels/quant/gpu_weight.h. Included by device/linear_kernel.h.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

// Sixteen rows (a fragment's) of groups' scales and offsets, ready to use: s and a of rows g and
// g + 8, a in each of four bytes.
struct GroupRegisters {
  uint32_t scale[2] = {};
  uint32_t offset[2] = {};
};

// Two words of the packed order: low half s, high half a (int16).
QSERVE_DEVICE GroupRegisters ExpandGroups(uint64_t words) {
  GroupRegisters groups;
  QSERVE_UNROLL
  for (int half = 0; half < 2; ++half) {
    const auto word = static_cast<uint32_t>(words >> (32 * half));
    groups.scale[half] = word & 0xffffu;
    groups.offset[half] =
        static_cast<uint32_t>(static_cast<int32_t>(word) >> 16) * uint32_t{0x01010101};
  }
  return groups;
}

// u4 codes, two K steps in sixteen bytes.
struct U4Tiles {
  static constexpr int kTileBytes = 4096;
  static constexpr int kStepsPerLoad = 2;
  using Sum = int32_t;
  static QSERVE_DEVICE void Multiply(Sum (&sum)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
    MmaU8S8(sum, a, b);
  }
  // The codes of rows g and g + 8, one a byte.
  static QSERVE_DEVICE void Split(uint32_t word, uint32_t& low, uint32_t& high) {
    low = word & 0x0f0f0f0fu;
    high = word >> 4 & 0x0f0f0f0fu;
  }
};

struct W4Channel : U4Tiles {
  static constexpr bool kGroups = false;
  static QSERVE_DEVICE void Expand(const Vec16& loaded, int step, const GroupRegisters& /*groups*/,
                                   uint32_t (&a)[4]) {
    Split(step == 0 ? loaded.x : loaded.z, a[0], a[1]);
    Split(step == 0 ? loaded.y : loaded.w, a[2], a[3]);
  }
};

// code * s + a = weight + 128: five instructions for eight weights. The 128s are taken out of the
// sum once, by 128 * row_sum.
struct W4Group : U4Tiles {
  static constexpr bool kGroups = true;
  static QSERVE_DEVICE void Expand(const Vec16& loaded, int step, const GroupRegisters& groups,
                                   uint32_t (&a)[4]) {
    Split(step == 0 ? loaded.x : loaded.z, a[0], a[1]);
    Split(step == 0 ? loaded.y : loaded.w, a[2], a[3]);
    QSERVE_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = a[i] * groups.scale[i % 2] + groups.offset[i % 2];
  }
};

struct WideTiles {
  static constexpr int kTileBytes = 8192;
  static constexpr int kStepsPerLoad = 1;
  static constexpr bool kGroups = false;
  static QSERVE_DEVICE void Expand(const Vec16& loaded, int /*step*/,
                                   const GroupRegisters& /*groups*/, uint32_t (&a)[4]) {
    a[0] = loaded.x;
    a[1] = loaded.y;
    a[2] = loaded.z;
    a[3] = loaded.w;
  }
};

struct W8 : WideTiles {
  using Sum = int32_t;
  static QSERVE_DEVICE void Multiply(Sum (&sum)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
    MmaS8S8(sum, a, b);
  }
};

// fp16: sums of fp32 in one order over K, the same for every shape of block (never split).
struct Half : WideTiles {
  using Sum = float;
  static QSERVE_DEVICE void Multiply(Sum (&sum)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
    MmaF16(sum, a, b);
  }
};

}  // namespace qserve::kernels::cuda
