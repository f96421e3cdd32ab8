// The floating-point operations over a table of inner loops (float_kernels.h): what emulated, avx2
// and avx512 have in common. Called by their entry points in float_ops.cc alone.
#pragma once

#include "kernels/cpu/float_kernels.h"
#include "kernels/cpu/op_table.h"

namespace qserve::kernels::cpu {

Status RunEmbed(const FloatKernels& kernels, OpContext& context, const EmbedArgs& args);
Status RunNorm(const FloatKernels& kernels, OpContext& context, const NormArgs& args);
Status RunSiluMul(const FloatKernels& kernels, OpContext& context, const SiluMulArgs& args);
Status RunRopeAppend(const FloatKernels& kernels, OpContext& context, const RopeAppendArgs& args);
Status RunAttention(const FloatKernels& kernels, OpContext& context, const AttentionArgs& args);

// Where row r of an activation's int8 part goes; all null if none is wanted.
inline RowTarget TargetOf(const Activation& out, int64_t r) {
  if (out.q == nullptr) return {};
  return {
      .q = out.q + r * out.q_stride + out.lead, .scale = out.scale + r, .row_sum = out.row_sum + r};
}

}  // namespace qserve::kernels::cpu
