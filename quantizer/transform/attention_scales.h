// Scales of keys against queries that cost least once keys are stored in 4 bits: better than a
// power of the largest magnitudes, because what counts is the range of each token's key. Pure
// function; called by block_transformer.cc.
#pragma once

#include <cstdint>

#include "quantizer/block/matrix.h"

namespace qserve::quantizer::transform {

// Makes `lambda` [head_dim] of one kv head better, pair by pair, from keys [tokens][head_dim] and
// second moments of the queries that read them [head_dim]. A stored key errs alike in all channels,
// by its range: minimised is mean over tokens of range(k / lambda)^2, times sum lambda_i^2 q_i^2.
void FitAttentionScales(const MatrixF& keys, const VectorF& query_moments,
                        Eigen::Ref<VectorF> lambda);

}  // namespace qserve::quantizer::transform
