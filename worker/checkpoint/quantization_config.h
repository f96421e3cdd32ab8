// The quantization_config of a QoQ checkpoint. Called by model_config.cc (reading) and the writers
// of checkpoints.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "worker/checkpoint/json_text.h"
#include "worker/checkpoint/model_config.h"

namespace qserve::worker::checkpoint {

// Fills scheme, kv_bits, layer_kv_bits and lm_head_bits of `config` (whose layers are known) from
// the object. InvalidArgument for another quant_method (with the supported list) and values that
// the format does not have.
absl::Status ParseQuantization(const nlohmann::json& object, const std::string& where,
                               ModelConfig& config);

// The object for a scheme (not kFloat): what a quantizer writes into config.json. lm_head_bits is
// left out: it is recorded only by a quantizer that has measured it.
nlohmann::json QuantizationObject(Scheme scheme, int kv_bits);

}  // namespace qserve::worker::checkpoint
