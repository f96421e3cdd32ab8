// See rope_config.h. The names and defaults are those of transformers' modeling_rope_utils.
#include "worker/checkpoint/rope_config.h"

#include <fmt/format.h>

#include "common/status_macros.h"

namespace qserve::worker::checkpoint {
namespace {

constexpr double kMaxTheta = 1e12;
constexpr double kMaxFactor = 1e6;
constexpr int64_t kMaxPositions = int64_t{1} << 30;
constexpr const char* kSupported = "default, linear, llama3, yarn";

// "rope_type", or "type" as older files have it; absent: "default".
absl::StatusOr<RopeType> ParseType(Fields& fields) {
  std::string name = "default";
  if (const auto type = fields.String("type")) name = *type;
  if (const auto type = fields.String("rope_type")) name = *type;
  RETURN_IF_ERROR(fields.status());
  if (name == "default") return RopeType::kDefault;
  if (name == "linear") return RopeType::kLinear;
  if (name == "llama3") return RopeType::kLlama3;
  if (name == "yarn") return RopeType::kYarn;
  return absl::InvalidArgumentError(
      fmt::format("{}: the rope type \"{}\" is not supported; supported are {}", fields.where(),
                  Printable(name), kSupported));
}

void RequireFactor(Fields& fields, RopeConfig& rope) {
  if (const auto factor = fields.Number("factor", 1.0, kMaxFactor)) {
    rope.factor = *factor;
  } else {
    fields.Fail("factor is missing");
  }
}

void ParseLlama3(Fields& fields, RopeConfig& rope) {
  RequireFactor(fields, rope);
  rope.low_freq_factor = fields.Number("low_freq_factor", 1e-6, kMaxFactor).value_or(1.0);
  rope.high_freq_factor = fields.Number("high_freq_factor", 1e-6, kMaxFactor).value_or(4.0);
  rope.original_max_position_embeddings =
      fields.RequiredInteger("original_max_position_embeddings", 1, kMaxPositions);
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    fields.Fail("high_freq_factor must be greater than low_freq_factor");
  }
}

void ParseYarn(Fields& fields, RopeConfig& rope, int64_t max_position_embeddings) {
  rope.original_max_position_embeddings =
      fields.Integer("original_max_position_embeddings", 1, kMaxPositions)
          .value_or(max_position_embeddings);
  if (fields.Find("factor") == nullptr &&
      fields.Find("original_max_position_embeddings") != nullptr) {
    rope.factor = static_cast<double>(max_position_embeddings) /
                  static_cast<double>(rope.original_max_position_embeddings);
    if (rope.factor < 1.0) fields.Fail("factor is missing");
  } else {
    RequireFactor(fields, rope);
  }
  rope.attention_factor = fields.Number("attention_factor", 1e-6, kMaxFactor);
  rope.beta_fast = fields.Number("beta_fast", 1e-6, kMaxFactor).value_or(32.0);
  rope.beta_slow = fields.Number("beta_slow", 1e-6, kMaxFactor).value_or(1.0);
  rope.mscale = fields.Number("mscale", 0.0, kMaxFactor).value_or(0.0);
  rope.mscale_all_dim = fields.Number("mscale_all_dim", 0.0, kMaxFactor).value_or(0.0);
  rope.truncate = fields.Bool("truncate").value_or(true);
  if (rope.beta_fast < rope.beta_slow) fields.Fail("beta_fast must not be less than beta_slow");
}

// One flat set of parameters. `theta` is what stands outside of it.
absl::StatusOr<RopeConfig> ParseParameters(const nlohmann::json& object, const std::string& where,
                                           double theta, int64_t max_position_embeddings) {
  if (!object.is_object())
    return absl::InvalidArgumentError(fmt::format("{} must be an object", where));
  Fields fields(object, where);
  RopeConfig rope;
  rope.theta = fields.Number("rope_theta", 1.0, kMaxTheta).value_or(theta);
  if (fields.Number("partial_rotary_factor", 0.0, 1.0).value_or(1.0) != 1.0) {
    fields.Fail("partial_rotary_factor other than 1 is not supported");
  }
  ASSIGN_OR_RETURN(rope.type, ParseType(fields));
  if (rope.type == RopeType::kLinear) RequireFactor(fields, rope);
  if (rope.type == RopeType::kLlama3) ParseLlama3(fields, rope);
  if (rope.type == RopeType::kYarn) ParseYarn(fields, rope, max_position_embeddings);
  RETURN_IF_ERROR(fields.status());
  return rope;
}

// rope_parameters per layer type: {"full_attention": {...}, "sliding_attention": {...}}.
absl::StatusOr<RopeConfig> ParsePerType(const nlohmann::json& object, const std::string& where,
                                        const std::vector<std::string>& layer_types, double theta,
                                        int64_t max_position_embeddings) {
  const nlohmann::json* chosen = nullptr;
  std::string chosen_where;
  for (const std::string& type : layer_types) {
    const auto found = object.find(type);
    const std::string type_where = fmt::format("{}.{}", where, type);
    if (found == object.end() || !found->is_object()) {
      return absl::InvalidArgumentError(fmt::format("{} must be an object", type_where));
    }
    if (chosen != nullptr && *chosen != *found) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: rotary parameters that differ between layer types are not supported", where));
    }
    chosen = &*found;
    chosen_where = type_where;
  }
  return ParseParameters(*chosen, chosen_where, theta, max_position_embeddings);
}

}  // namespace

absl::StatusOr<RopeConfig> ParseRope(const nlohmann::json& config, const std::string& where,
                                     const std::vector<std::string>& layer_types,
                                     int64_t max_position_embeddings) {
  Fields fields(config, where);
  const double theta = fields.Number("rope_theta", 1.0, kMaxTheta).value_or(10000.0);
  if (fields.Number("partial_rotary_factor", 0.0, 1.0).value_or(1.0) != 1.0) {
    fields.Fail("partial_rotary_factor other than 1 is not supported");
  }
  RETURN_IF_ERROR(fields.status());
  if (const nlohmann::json* parameters = fields.Find("rope_parameters")) {
    const std::string parameters_where = where + ": rope_parameters";
    bool per_type = false;
    for (const char* type : {"full_attention", "sliding_attention"}) {
      per_type = per_type || (parameters->is_object() && parameters->contains(type));
    }
    if (per_type && !layer_types.empty()) {
      return ParsePerType(*parameters, parameters_where, layer_types, theta,
                          max_position_embeddings);
    }
    return ParseParameters(*parameters, parameters_where, theta, max_position_embeddings);
  }
  if (const nlohmann::json* scaling = fields.Find("rope_scaling")) {
    return ParseParameters(*scaling, where + ": rope_scaling", theta, max_position_embeddings);
  }
  RopeConfig rope;
  rope.theta = theta;
  return rope;
}

}  // namespace qserve::worker::checkpoint
