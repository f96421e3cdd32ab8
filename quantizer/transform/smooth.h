// Channels scaled against one another where the model does not see it: SmoothAttention (keys
// against queries), smoothing of o_proj's and down_proj's inputs (values, up against what reads
// them), and their order. Pure functions of a block and of largest magnitudes seen in calibration;
// called by layer_quantizer.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "quantizer/block/block_weights.h"
#include "quantizer/transform/transform_options.h"

namespace qserve::quantizer::transform {

// lambda of every channel of every kv head [kv_heads * head_dim] from the largest magnitudes of
// rotated queries [heads * head_dim] and keys [kv_heads * head_dim]:
//   lambda_i = (max |k_i|)^alpha / (max |q_i|)^beta,
// both maxima over the pair (i, i + head_dim / 2), which rotation mixes, and that of queries over
// the head's group. With q/k norms one lambda for all heads, since the gains are shared. Scaled to
// a geometric mean of 1 in each head; channels that are always zero get 1.
VectorF AttentionScales(const BlockWeights& block, const VectorF& largest_q,
                        const VectorF& largest_k, double alpha, double beta);

// k <- k / lambda, q <- q lambda: rows and biases of k_proj and q_proj, or the gains of the norms
// behind them.
void ScaleAttention(const VectorF& lambda, BlockWeights& block);

// s_k = (largest |x_k|)^alpha / (max |W_k|)^beta for the columns of a linear, scaled to a geometric
// mean of 1.
VectorF OutputScales(const MatrixF& weight, const VectorF& largest_x, double alpha, double beta);

// down_proj's columns times s [intermediate], up_proj's rows and bias divided by it.
void ScaleFeedForward(const VectorF& s, BlockWeights& block);
// o_proj's columns times s, v_proj's rows and bias divided: s [kv_heads * head_dim], the same for
// every query head of a group.
void ScaleValues(const VectorF& s, BlockWeights& block);
// The largest of each channel over the query heads of a group: [heads * head_dim] to [kv_heads *
// head_dim].
VectorF OverGroup(const BlockWeights& block, const VectorF& per_query_head);

// Input channels of down_proj in ascending order of `largest` (columns; rows of gate and up), and
// those of o_proj within each kv head, the same for the query heads that read it.
void ReorderFeedForward(const VectorF& largest, BlockWeights& block);
void ReorderValues(const VectorF& largest, BlockWeights& block);

}  // namespace qserve::quantizer::transform
