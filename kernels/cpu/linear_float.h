// Full-precision products: fp32 x fp32, weights of any floating-point type widened when packed.
// Implemented by linear_float_dnnl.cc where oneDNN is found, else by linear_float_plain.cc; CMake
// chooses. A baseline: not bound to one order of additions.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cpu/aligned_memory.h"
#include "kernels/cpu/op_table.h"

namespace qserve::kernels::cpu {

// kFloat weights as fp32 [n][k].
class FloatLinear final : public PackedLinear {
 public:
  AlignedMemory values;
  std::vector<float> bias_values;
};

// out[m][n0..n1) = x[m] . W[n], for m in [0, rows); the part of one thread. Defined by the file
// that CMake chose.
void MultiplyFloat(const FloatLinear& weight, const LinearArgs& args, int64_t n0, int64_t n1);

// Shared by both: widening, cutting n over the pool, the bias.
StatusOr<std::unique_ptr<PackedLinear>> PackFloat(ThreadPool& pool, const LinearWeight& weight);
Status LinearFloat(OpContext& context, const LinearArgs& args);

}  // namespace qserve::kernels::cpu
