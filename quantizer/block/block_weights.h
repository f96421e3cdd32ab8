// One transformer block's weights in fp32 on the host: what transforms change and solvers round.
// Read from the mapped checkpoint when its turn has come and dropped afterwards. One thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/quant/linear_weight.h"
#include "quantizer/block/matrix.h"
#include "worker/checkpoint/checkpoint.h"

namespace qserve::quantizer {

struct FloatLinear {
  std::string name;
  MatrixF weight;  // [n][k]
  VectorF bias;    // [n] or empty
  bool has_bias() const { return bias.size() != 0; }
};

enum LinearIndex { kQ, kK, kV, kO, kGate, kUp, kDown, kLinearCount };

struct BlockWeights {
  int64_t layer = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  std::array<FloatLinear, kLinearCount> linears;
  VectorF input_gain, post_attention_gain;  // [hidden]
  VectorF q_gain, k_gain;                   // [head_dim], empty without q/k norm

  FloatLinear& operator[](LinearIndex i) { return linears[i]; }
  const FloatLinear& operator[](LinearIndex i) const { return linears[i]; }
  int group() const { return heads / kv_heads; }  // query heads of a kv head
};

// Errors: the checkpoint's; InvalidArgument for weights that are not finite, naming the tensor.
absl::StatusOr<BlockWeights> ReadBlock(const worker::checkpoint::Checkpoint& checkpoint,
                                       int64_t layer, int threads);

// Rows [begin, end) of embedding or lm_head in fp32.
absl::StatusOr<MatrixF> ReadMatrixRows(const worker::checkpoint::Checkpoint& checkpoint,
                                       const std::string& name, worker::checkpoint::Range rows,
                                       int64_t cols);

// The linear as the kernels take it, in fp32.
kernels::LinearWeight ToKernelWeight(const FloatLinear& linear);

}  // namespace qserve::quantizer
