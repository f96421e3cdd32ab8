// QServe's checkpoint order <-> canonical weights. The orders (docs/CHECKPOINTS.md has the
// figures):
//   qweight    [n][k / 2] bytes: 32 x 32 tiles, row-major over tiles, 512 bytes each; code (n, k)
//   is in the tile's byte
//              ((n % 8) * 4 + k % 16 / 4) * 16 + k % 32 / 16 * 8 + n % 16 / 8 * 4 + k % 4, low
//              nibble if n % 32 < 16, else high
//   s2_scales, s2_zeros [k / 128][n]: row n in column n / 32 * 32 + n % 8 * 4 + n % 32 / 8; a zero
//   is offset modulo 256 s1_scales, s1_szeros, bias [n] fp16 in natural order; s1_szeros is +zero *
//   scale
// Used by worker/checkpoint (reading slices of a mapped file), the quantizer (writing) and bench.
// Any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/quant/linear_weight.h"

namespace qserve::kernels {

// The tensors of one linear as they lie on disk, little endian. Those that the format lacks are
// empty.
struct QServeTensors {
  WeightFormat format = WeightFormat::kW4Group128;  // or kW4PerChannel
  int64_t n = 0;
  int64_t k = 0;
  std::vector<uint8_t> qweight;     // [n][k / 2]
  std::vector<uint16_t> s1_scales;  // [n]
  std::vector<uint16_t> s1_szeros;  // [n], per channel only
  std::vector<uint8_t> s2_scales;   // [k / 128][n], g128 only
  std::vector<uint8_t> s2_zeros;    // [k / 128][n], g128 only
  std::vector<uint16_t> bias;       // [n] or empty
};

// The same, not owned and not aligned, as found in a mapped file.
struct QServeView {
  WeightFormat format = WeightFormat::kW4Group128;
  int64_t n = 0;
  int64_t k = 0;
  std::span<const uint8_t> qweight;
  std::span<const uint8_t> s1_scales;  // 2 n bytes
  std::span<const uint8_t> s1_szeros;
  std::span<const uint8_t> s2_scales;
  std::span<const uint8_t> s2_zeros;
  std::span<const uint8_t> bias;
};
QServeView ViewOf(const QServeTensors& tensors);

// Rows [row_begin, row_end) and columns [column_begin, column_end) of a weight, each a multiple
// of 32.
struct QServeSlice {
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t column_begin = 0;
  int64_t column_end = 0;
};

// InvalidArgument if the weight is not valid, lead is not 0, a size is no multiple of 32 (k: of 128
// for g128), or a scale, zero or bias is not an fp16 value.
StatusOr<QServeTensors> PackQServe(const LinearWeight& weight);

// lead becomes column_begin % 128, groups that straddle a cut come whole, the bias only with column
// 0. InvalidArgument if sizes do not fit or if no offset keeps the codes of a group in int8.
// *bytes_touched (may be null) grows by the bytes of the view looked at.
StatusOr<LinearWeight> UnpackQServe(const QServeView& view, const QServeSlice& slice,
                                    int64_t* bytes_touched);

}  // namespace qserve::kernels
