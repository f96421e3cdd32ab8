// What changes a block's weights and not its function, without looking at activations: norm gains
// folded into the linears that read them, and the residual stream turned. Pure functions of a
// block; called by the pipeline.
#pragma once

#include "quantizer/block/block_weights.h"
#include "quantizer/transform/hadamard.h"

namespace qserve::quantizer::transform {

// W <- W diag(gain) for q, k, v and for gate, up; the gains become 1.
void FoldNormGains(BlockWeights& block);

// The block for a residual stream x R instead of x: readers W <- W R, writers (o, down) W <- R^T W,
// their biases b <- b R. Gains must be folded: a norm commutes with R only where they are 1.
void RotateResidual(const Hadamard& rotation, BlockWeights& block, int threads);

}  // namespace qserve::quantizer::transform
