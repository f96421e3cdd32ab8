// See quantization_config.h.
#include "worker/checkpoint/quantization_config.h"

#include <fmt/format.h>

#include "common/status_macros.h"

namespace qserve::worker::checkpoint {
namespace {

bool IsKvBits(int64_t bits) { return bits == 4 || bits == 8 || bits == 16; }

void ParseLayerKvBits(Fields& fields, ModelConfig& config) {
  const nlohmann::json* list = fields.Find("layer_kv_bits");
  if (list == nullptr) return;
  if (!list->is_array() || static_cast<int64_t>(list->size()) != config.layers) {
    fields.Fail("layer_kv_bits must be a list with one entry a layer");
    return;
  }
  for (const nlohmann::json& entry : *list) {
    if (!entry.is_number_integer() || !IsKvBits(entry.get<int64_t>())) {
      fields.Fail("layer_kv_bits may hold 4, 8 and 16");
      return;
    }
    config.layer_kv_bits.push_back(entry.get<int>());
  }
}

}  // namespace

absl::Status ParseQuantization(const nlohmann::json& object, const std::string& where,
                               ModelConfig& config) {
  if (!object.is_object())
    return absl::InvalidArgumentError(fmt::format("{} must be an object", where));
  Fields fields(object, where);
  const std::string method = fields.String("quant_method").value_or("");
  if (fields.status().ok() && method != "qoq") {
    return absl::InvalidArgumentError(
        fmt::format("{}: the quantization method \"{}\" is not supported; supported are qoq and "
                    "unquantized checkpoints",
                    where, Printable(method)));
  }
  if (fields.Integer("wbits", 0, 64).value_or(4) != 4) fields.Fail("wbits must be 4");
  const int64_t group_size = fields.RequiredInteger("group_size", -1, INT32_MAX);
  if (group_size != -1 && group_size != 128)
    fields.Fail("group_size must be -1 (per channel) or 128");
  if (const auto bits = fields.Integer("kv_bits", 0, 64)) {
    if (!IsKvBits(*bits)) fields.Fail("kv_bits must be 4, 8 or 16");
    config.kv_bits = static_cast<int>(*bits);
  }
  ParseLayerKvBits(fields, config);
  if (const auto bits = fields.Integer("lm_head_bits", 0, 64)) {
    if (!IsKvBits(*bits)) fields.Fail("lm_head_bits must be 4, 8 or 16");
    config.lm_head_bits = static_cast<int>(*bits);
  }
  RETURN_IF_ERROR(fields.status());
  config.scheme = group_size == 128 ? Scheme::kQoqGroup128 : Scheme::kQoqPerChannel;
  return absl::OkStatus();
}

nlohmann::json QuantizationObject(Scheme scheme, int kv_bits) {
  return {{"quant_method", "qoq"},
          {"wbits", 4},
          {"group_size", scheme == Scheme::kQoqGroup128 ? 128 : -1},
          {"kv_bits", kv_bits}};
}

}  // namespace qserve::worker::checkpoint
