// What a CUDA thread can do, as the kernels write it: one vocabulary for two compilers. nvcc takes
// it from simt_ptx.h (PTX and intrinsics); a host compiler takes it from simt_host.h (the emulator
// of kernels/cuda/emulator), so that whole kernels run in tests on machines without a GPU. Kernels
// include this and nothing of CUDA; no other file asks which compiler it is.
//
// Rules that both keep: blocks are one-dimensional and a multiple of 32 threads; every warp-wide
// operation is called by all 32 lanes; no block waits for another (whoever arrives last at a
// counter finishes the work); all floating point is written out (Fma where one is meant: nothing is
// contracted).
//
// Fragments are those of the PTX ISA. Of lane l, with g = l / 4 and c = l % 4:
//
//   MmaU8S8, MmaS8S8   d [16][8] += a [16][32] * b [32][8], bytes, lowest byte first
//     a[0], a[1]       rows g and g + 8, columns 4c .. 4c + 3
//     a[2], a[3]       rows g and g + 8, columns 16 + 4c ..
//     b[0], b[1]       column g, k 4c .. 4c + 3 and 16 + 4c ..
//   MmaF16             d [16][8] += a [16][16] * b [16][8], fp16 pairs, first in the low half
//     a[0], a[1]       rows g and g + 8, columns 2c, 2c + 1
//     a[2], a[3]       rows g and g + 8, columns 8 + 2c, 9 + 2c
//     b[0], b[1]       column g, k 2c, 2c + 1 and 8 + 2c, 9 + 2c
//   d of both          d[0], d[1]: row g, columns 2c, 2c + 1; d[2], d[3]: row g + 8
//   LoadMatrixX4       lane l names row l % 8, sixteen bytes, of matrix l / 8; r[i] is bytes
//                      4c .. 4c + 3 of row g of matrix i
//     ...Transposed    of 8x8 two-byte elements: r[i] = {m[2c][g], m[2c + 1][g]} of matrix i
#pragma once

#include <cstdint>

namespace qserve::kernels::cuda {

// Sixteen bytes, the widest access.
struct alignas(16) Vec16 {
  uint32_t x = 0, y = 0, z = 0, w = 0;
};

}  // namespace qserve::kernels::cuda

#ifdef __CUDACC__
#include "kernels/cuda/device/simt_ptx.h"
#else
#include "kernels/cuda/device/simt_host.h"
#endif
