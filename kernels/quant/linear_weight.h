// One linear layer's weights in host memory in canonical order: what checkpoints are read into,
// what quantizers produce and what every backend packs from. y[m][n] = sum_k x[m][k] * W[n][k] (+
// bias[n]).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/status.h"
#include "kernels/types.h"

namespace qserve::kernels {

// n output rows x k input columns. Exactly the vectors of its `format` are filled:
//   kFloat, kHalfFixedOrder: floats [n][k], raw values in `float_type` (kHalfFixedOrder: kF16),
//   little endian. kW8:           codes [n][k] (int8 as bytes, -127..127), scale [n]:            W
//   = code * scale kW4PerChannel: codes [n][k] 0..15, scale [n], scaled_zero [n]:                W
//   = code * scale - scaled_zero kW4Group128:   codes [n][k] 0..15, scale [n], group_scale and
//   group_offset [n][groups()]:
//                  d8 = code * group_scale + group_offset, in [-128, 127] for every stored code;  W
//                  = d8 * scale
// Column c belongs to group (lead + c) / 128: `lead` in [0, 127] is where a tensor-parallel slice
// starts inside its first group, so that a group that straddles the cut stands on both ranks. lead
// is 0 for formats without groups unless the producer of the activation needs one common alignment;
// kernels see zero activations in the lead.
struct LinearWeight {
  WeightFormat format = WeightFormat::kFloat;
  FloatType float_type = FloatType::kF32;
  int64_t n = 0;
  int64_t k = 0;
  int64_t lead = 0;
  std::vector<uint8_t> floats;
  std::vector<uint8_t> codes;
  std::vector<float> scale;           // fp16 values on disk, exact in fp32
  std::vector<float> scaled_zero;     // fp16 values on disk: zero * scale, subtracted
  std::vector<uint8_t> group_scale;   // 1..127 (1..16 from our quantizer)
  std::vector<int16_t> group_offset;  // -zero * group_scale
  std::vector<float> bias;            // empty or [n]

  int64_t groups() const { return (lead + k + kWeightGroup - 1) / kWeightGroup; }
};

// Checks sizes against format and, for kW4Group128, that no stored code leaves int8. O(n k).
Status Validate(const LinearWeight& weight);

// Rows of several weights of the same format, k and lead under one another (q|k|v, gate|up). All
// have a bias or none (an absent bias beside a present one counts as zero). InvalidArgument if they
// do not fit.
StatusOr<LinearWeight> ConcatenateRows(const std::vector<const LinearWeight*>& parts);

// Columns [begin, end), 0 <= begin < end <= k, as a tensor-parallel rank needs them: groups that
// straddle a cut come whole, lead is set, and the bias stays with the slice that starts at column
// 0.
LinearWeight SliceColumns(const LinearWeight& weight, int64_t begin, int64_t end);

// W[row][0..k) as the kernels see it, in fp32: for tests, the quantizer's simulation and error
// reports.
void DequantizeRow(const LinearWeight& weight, int64_t row, float* out);

}  // namespace qserve::kernels
