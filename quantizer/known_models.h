// The exponents of down_proj's smoothing that QoQ's authors published for models they quantized.
// Constant data; called by quantize_command.cc.
#pragma once

#include <optional>

#include "quantizer/transform/transform_options.h"
#include "worker/checkpoint/model_config.h"

namespace qserve::quantizer {

// Told by its sizes; nothing for a model that is not in the table, which gets the exponents of
// SmoothOutputOptions.
std::optional<transform::SmoothOutputOptions> PublishedSmoothing(
    const worker::checkpoint::ModelConfig& config, worker::checkpoint::Scheme scheme);

}  // namespace qserve::quantizer
