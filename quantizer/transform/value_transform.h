// What each value head may be multiplied by, because o_proj undoes it: values are stored in 4 bits,
// and some bases cost less than others. Pure functions of a block and statistics of its values;
// called by layer_quantizer.cc.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "quantizer/block/block_weights.h"
#include "quantizer/transform/transform_options.h"

namespace qserve::quantizer::transform {

// v' = A_h v for every kv head h: rows of v_proj and its bias multiplied by A_h, the columns of
// o_proj of every query head that reads it by A_h^-1. `matrices`: one [head_dim][head_dim] a kv
// head, invertible.
void ApplyValueTransform(const std::vector<MatrixD>& matrices, BlockWeights& block);

// The Hadamard matrix of head_dim, for every kv head.
absl::StatusOr<std::vector<MatrixD>> HadamardValueTransform(const BlockWeights& block);

// For each kv head the A = R M that makes the error of 4-bit values cost least at o_proj's output.
// Stored values have one step for all channels of a token; behind a Hadamard matrix R all channels
// are alike, so that the error is tr(A C A^T) tr(A^-T G A^-1), C = `moments` [h] of the values and
// G = sum of W_o^T W_o over the head's columns. It is least for
//   M^T M = C^-1/2 (C^1/2 G C^1/2)^1/2 C^-1/2.
absl::StatusOr<std::vector<MatrixD>> BalancedValueTransform(const BlockWeights& block,
                                                            const std::vector<MatrixD>& moments);

}  // namespace qserve::quantizer::transform
