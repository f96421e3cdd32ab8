// The transforms of a block that look at activations, in their order: value heads, SmoothAttention,
// smoothing of o_proj's and down_proj's inputs, channel order. The block's norm gains are folded
// and its residual stream is rotated before. Called by layer_quantizer.cc.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "kernels/types.h"
#include "quantizer/block/block_weights.h"
#include "quantizer/calibration/block_runner.h"
#include "quantizer/solve/solve_options.h"
#include "quantizer/transform/transform_options.h"

namespace qserve::quantizer {

// `hidden`: the residual stream before the block of every window, in full precision. `runner` may
// be null where nothing that needs activations is on. `rounding`: how weights will be rounded,
// `kv`: how keys and values will be stored, for what is searched for.
absl::Status TransformBlock(const transform::TransformOptions& options,
                            const solve::SolveOptions& rounding, kernels::KvFormat kv,
                            calibration::BlockRunner* runner, const std::vector<MatrixF>& hidden,
                            BlockWeights& block);

}  // namespace qserve::quantizer
