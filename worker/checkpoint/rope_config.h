// The rotary embedding of a config.json: rope_theta with rope_scaling (transformers 4) or
// rope_parameters (5), the latter flat or per layer type. Called by model_config.cc.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/json_text.h"
#include "worker/checkpoint/model_config.h"

namespace qserve::worker::checkpoint {

// `config` is the whole of config.json, `where` names it; `layer_types` the distinct attention
// types of its layers
// ("full_attention", ...): where rope_parameters is given per layer type, those of all types in use
// must be equal. InvalidArgument for unknown rope types (with the supported list), partial rotation
// and numbers out of range.
absl::StatusOr<RopeConfig> ParseRope(const nlohmann::json& config, const std::string& where,
                                     const std::vector<std::string>& layer_types,
                                     int64_t max_position_embeddings);

}  // namespace qserve::worker::checkpoint
