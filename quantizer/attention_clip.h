// Chooses how much of their range q_proj and k_proj keep when they are rounded: by the error of the
// attention output, behind rotation, softmax and values with stored keys as served, where every
// other linear is clipped by its own output. Called by layer_quantizer.cc for each block.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/quant/linear_weight.h"
#include "quantizer/block/block_weights.h"
#include "quantizer/calibration/block_runner.h"
#include "quantizer/settings.h"

namespace qserve::quantizer {

// Rounds kQ or kK with this part of the range kept (0: as searched for by the inputs' moments).
using SolveClipped =
    std::function<absl::StatusOr<kernels::LinearWeight>(LinearIndex linear, double ratio)>;

struct AttentionClipInput {
  const BlockWeights& block;  // in full precision; o_proj's columns weigh the heads' errors
  calibration::BlockRunner& runner;
  const calibration::DeviceBlock& exact;
  calibration::DeviceBlock& rounded;  // its kQkv linear is replaced
  const std::vector<MatrixF>& exact_hidden;
  const std::vector<MatrixF>& rounded_hidden;
};

// Squared error at o_proj's output of each kv head, summed over the windows looked at.
struct AttentionClipErrors {
  VectorD before, after;  // after <= before, head by head
};

// `linears` has kQ, kK and kV rounded. Tries the ratios for q, then for k, and puts the rows of the
// best into them, for each kv head by itself: a head's output depends on its own rows alone.
absl::StatusOr<AttentionClipErrors> ClipByAttention(
    const ClipAttentionOptions& options, const AttentionClipInput& input, const SolveClipped& solve,
    std::array<kernels::LinearWeight, kLinearCount>& linears);

}  // namespace qserve::quantizer
