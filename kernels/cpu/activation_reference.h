// How the reference operations write an Activation row: the floats, or int8 codes with scale and
// sum, or both.
#pragma once

#include "kernels/quant/activation_quant.h"
#include "kernels/types.h"

namespace qserve::kernels::cpu::reference {

// `values` are out.cols floats of row `r`.
inline void WriteRow(const Activation& out, int64_t r, const float* values) {
  if (out.f32 != nullptr) {
    for (int64_t c = 0; c < out.cols; ++c) out.f32[r * out.f32_stride + c] = values[c];
  }
  if (out.q != nullptr) {
    const QuantizedRow row = QuantizeRow(values, out.cols, out.q + r * out.q_stride + out.lead);
    out.scale[r] = row.scale;
    out.row_sum[r] = row.sum;
  }
}

}  // namespace qserve::kernels::cpu::reference
