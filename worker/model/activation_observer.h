// Sees a model's activations as they pass: how the quantizer calibrates. Given to a Llama that runs
// alone on one rank.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace qserve::worker::model {

// The four linears of a block, by what feeds them.
enum class LinearInput { kQkv, kO, kGateUp, kDown };

// Matrices are host memory, one row a token of the step, valid during the call; called on the
// thread of Forward, in order of the layers. Values are fp32, before any quantization.
class ActivationObserver {
 public:
  virtual ~ActivationObserver() = default;

  // What the linear multiplies.
  virtual void OnLinearInput(int64_t layer, LinearInput linear, kernels::Matrix<const float> x) = 0;

  // Queries [tokens, heads * head_dim] and keys [tokens, kv_heads * head_dim] as attention compares
  // them: after q/k norm and rotation.
  virtual void OnRotated(int64_t layer, kernels::Matrix<const float> q,
                         kernels::Matrix<const float> k) = 0;

  // The residual stream behind the block.
  virtual void OnBlockOutput(int64_t layer, kernels::Matrix<const float> residual) = 0;
};

}  // namespace qserve::worker::model
