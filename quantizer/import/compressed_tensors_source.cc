// compressed-tensors' 4-bit integer weights (packed into int32, or one a byte): linear_source.h,
// OpenCompressedTensors. Only what QoQ holds exactly is taken over.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "quantizer/import/linear_source.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
using ckpt::Dtype;

constexpr int kUnsign = 8;  // signed codes -8..7 are stored 8 higher
constexpr int64_t kNibbles = 8;
constexpr int kMaxStep = 16;  // (0 - 8) * 16 is the lowest int8 value

bool IsHalf(double value) {
  const auto single = static_cast<float>(value);
  return double{single} == value && kernels::HalfToFloat(kernels::FloatToHalf(single)) == single &&
         std::isfinite(single);
}

class CompressedTensorsSource final : public LinearSource {
 public:
  CompressedTensorsSource(const ForeignTensors& tensors, ckpt::Scheme scheme)
      : tensors_(tensors), scheme_(scheme) {}

  ckpt::Scheme scheme() const override { return scheme_; }
  absl::StatusOr<kernels::LinearWeight> Read(const ckpt::LinearSpec& linear) const override;

 private:
  // Signed codes, one a byte, plus 8.
  absl::StatusOr<std::vector<uint8_t>> ReadCodes(const ckpt::LinearSpec& linear) const;
  // Plus 8; one a scale.
  absl::StatusOr<std::vector<int>> ReadZeros(const ckpt::LinearSpec& linear, int64_t groups) const;
  absl::Status SetRowScales(const std::string& name, const std::vector<float>& scales,
                            const std::vector<int>& zeros, kernels::LinearWeight& weight) const;
  absl::Status SetGroupScales(const std::string& name, const std::vector<float>& scales,
                              const std::vector<int>& zeros, kernels::LinearWeight& weight) const;

  const ForeignTensors& tensors_;
  const ckpt::Scheme scheme_;
};

// int32 values of eight codes each, the first in the lowest bits.
std::vector<uint8_t> Unpack(const std::vector<uint8_t>& packed) {
  std::vector<uint8_t> codes;
  codes.reserve(2 * packed.size());
  for (const uint8_t byte : packed) {
    codes.push_back(byte & 15);
    codes.push_back(byte >> 4);
  }
  return codes;
}

absl::StatusOr<std::vector<uint8_t>> CompressedTensorsSource::ReadCodes(
    const ckpt::LinearSpec& linear) const {
  const std::string packed_name = linear.name + ".weight_packed";
  if (tensors_.Has(packed_name)) {
    ASSIGN_OR_RETURN(const ForeignTensor packed,
                     tensors_.Read(packed_name, {linear.n, linear.k / kNibbles}));
    if (packed.dtype != Dtype::kI32)
      return absl::InvalidArgumentError(fmt::format("tensor {} is not I32", packed_name));
    return Unpack(packed.data);
  }
  const std::string name = linear.name + ".weight";
  ASSIGN_OR_RETURN(ForeignTensor plain, tensors_.Read(name, {linear.n, linear.k}));
  if (plain.dtype != Dtype::kI8) {
    return absl::InvalidArgumentError(
        fmt::format("tensor {} is {}, not 4-bit integers: the linear was not quantized", name,
                    ckpt::DtypeName(plain.dtype)));
  }
  for (uint8_t& code : plain.data) {
    const int value = static_cast<int8_t>(code) + kUnsign;
    if (value < 0 || value > 15)
      return absl::InvalidArgumentError(fmt::format("tensor {} has values beyond 4 bits", name));
    code = static_cast<uint8_t>(value);
  }
  return std::move(plain.data);
}

absl::StatusOr<std::vector<int>> CompressedTensorsSource::ReadZeros(const ckpt::LinearSpec& linear,
                                                                    int64_t groups) const {
  const std::string name = linear.name + ".weight_zero_point";
  const auto count = static_cast<size_t>(linear.n * groups);
  std::vector<int> zeros(count, kUnsign);
  if (!tensors_.Has(name)) return zeros;
  ASSIGN_OR_RETURN(const ForeignTensor tensor, tensors_.Read(name));
  if (tensor.dtype == Dtype::kI8 && tensor.data.size() == count) {
    for (size_t i = 0; i < count; ++i) zeros[i] += static_cast<int8_t>(tensor.data[i]);
  } else if (tensor.dtype == Dtype::kI32 &&
             tensor.shape == std::vector<int64_t>{linear.n / kNibbles, groups}) {
    // Packed along the rows: value r of column g holds rows 8 r .. 8 r + 7.
    const std::vector<uint8_t> codes = Unpack(tensor.data);
    for (size_t i = 0; i < codes.size(); ++i) {
      const size_t column = i / kNibbles % static_cast<size_t>(groups);
      const size_t row = i / kNibbles / static_cast<size_t>(groups) * kNibbles + i % kNibbles;
      zeros[row * static_cast<size_t>(groups) + column] = codes[i];
    }
  } else {
    return absl::InvalidArgumentError(
        fmt::format("tensor {} is in none of the forms that are read", name));
  }
  for (const int zero : zeros) {
    if (zero < 0 || zero > 15)
      return absl::InvalidArgumentError(fmt::format("tensor {} has values beyond 4 bits", name));
  }
  return zeros;
}

absl::Status CompressedTensorsSource::SetRowScales(const std::string& name,
                                                   const std::vector<float>& scales,
                                                   const std::vector<int>& zeros,
                                                   kernels::LinearWeight& weight) const {
  for (size_t n = 0; n < scales.size(); ++n) {
    const double scaled_zero = zeros[n] * double{scales[n]};
    if (scales[n] <= 0 || !IsHalf(scales[n]) || !IsHalf(scaled_zero)) {
      return absl::InvalidArgumentError(
          fmt::format("{}: scale {} of row {} with zero {} is not exact in fp16", name, scales[n],
                      n, zeros[n]));
    }
    weight.scale.push_back(scales[n]);
    weight.scaled_zero.push_back(static_cast<float>(scaled_zero));
  }
  return absl::OkStatus();
}

// The row scale of which every group's scale is a whole multiple, at most 16; 0 if there is none.
float RowScale(std::span<const float> scales) {
  float smallest = scales[0];
  for (const float scale : scales) smallest = std::min(smallest, scale);
  for (int divisor = 1; divisor <= kMaxStep; ++divisor) {
    const float unit = smallest / static_cast<float>(divisor);
    if (unit <= 0 || !IsHalf(unit)) continue;
    const bool fits = std::all_of(scales.begin(), scales.end(), [&](float scale) {
      const double step = std::round(double{scale} / double{unit});
      return step <= kMaxStep && step * double{unit} == double{scale};
    });
    if (fits) return unit;
  }
  return 0;
}

absl::Status CompressedTensorsSource::SetGroupScales(const std::string& name,
                                                     const std::vector<float>& scales,
                                                     const std::vector<int>& zeros,
                                                     kernels::LinearWeight& weight) const {
  const auto groups = static_cast<size_t>(weight.groups());
  for (size_t n = 0; n < static_cast<size_t>(weight.n); ++n) {
    const std::span<const float> row = std::span(scales).subspan(n * groups, groups);
    const float unit = RowScale(row);
    if (unit == 0) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: the group scales of row {} are no small multiples of one fp16 value, and QoQ's "
          "group scales are integers: it cannot be held exactly, quantize the original instead",
          name, n));
    }
    weight.scale.push_back(unit);
    for (size_t g = 0; g < groups; ++g) {
      const auto step = static_cast<int>(std::round(row[g] / unit));
      weight.group_scale.push_back(static_cast<uint8_t>(step));
      weight.group_offset.push_back(static_cast<int16_t>(-zeros[n * groups + g] * step));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<kernels::LinearWeight> CompressedTensorsSource::Read(
    const ckpt::LinearSpec& linear) const {
  if (tensors_.Has(linear.name + ".weight_g_idx")) {
    return absl::InvalidArgumentError(fmt::format(
        "{} has its columns grouped out of order (g_idx), which QoQ cannot hold", linear.name));
  }
  const bool group = scheme_ == ckpt::Scheme::kQoqGroup128;
  kernels::LinearWeight weight;
  weight.format = group ? kernels::WeightFormat::kW4Group128 : kernels::WeightFormat::kW4PerChannel;
  weight.n = linear.n;
  weight.k = linear.k;
  const int64_t groups = group ? weight.groups() : 1;
  ASSIGN_OR_RETURN(weight.codes, ReadCodes(linear));
  ASSIGN_OR_RETURN(const std::vector<float> scales,
                   tensors_.ReadFloats(linear.name + ".weight_scale", linear.n * groups));
  ASSIGN_OR_RETURN(const std::vector<int> zeros, ReadZeros(linear, groups));
  RETURN_IF_ERROR(group ? SetGroupScales(linear.name, scales, zeros, weight)
                        : SetRowScales(linear.name, scales, zeros, weight));
  if (const kernels::Status valid = kernels::Validate(weight); !valid.ok())
    return absl::InvalidArgumentError(fmt::format("{}: {}", linear.name, valid.message()));
  return weight;
}

absl::Status Refuse(const std::string& why) {
  return absl::InvalidArgumentError(
      fmt::format("this compressed-tensors checkpoint has no exact QoQ form: {}", why));
}

// Members of `object` that must have one value; missing ones are as given by `absent`.
bool Is(const nlohmann::json& object, const char* key, const nlohmann::json& value,
        bool absent = false) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? absent : *found == value;
}

absl::Status CheckInputs(const nlohmann::json& group) {
  const auto inputs = group.find("input_activations");
  if (inputs == group.end() || !inputs->is_object())
    return Refuse("its activations are not int8 (weights only)");
  if (!Is(*inputs, "num_bits", 8) || !Is(*inputs, "type", "int", true) ||
      !Is(*inputs, "symmetric", true, true) || !Is(*inputs, "dynamic", true) ||
      !Is(*inputs, "strategy", "token")) {
    return Refuse("its activations are not symmetric int8, dynamic and by token");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LinearSource>> OpenCompressedTensors(
    const ForeignTensors& tensors, const nlohmann::json& quantization) {
  for (const char* key : {"transform_config", "sparsity_config"}) {
    const auto found = quantization.find(key);
    if (found == quantization.end() || !found->is_object() || found->empty()) continue;
    if (!Is(*found, "format", "dense")) return Refuse(fmt::format("it has a {}", key));
  }
  const auto groups = quantization.find("config_groups");
  if (groups == quantization.end() || !groups->is_object() || groups->size() != 1)
    return Refuse("one group of linears is expected in config_groups");
  const nlohmann::json& group = groups->front();
  const auto weights = group.is_object() ? group.find("weights") : group.end();
  if (weights == group.end() || !weights->is_object()) return Refuse("weights are not described");
  if (!Is(*weights, "num_bits", 4) || !Is(*weights, "type", "int", true))
    return Refuse("its weights are not 4-bit integers");
  RETURN_IF_ERROR(CheckInputs(group));
  if (Is(*weights, "strategy", "channel"))
    return std::make_unique<CompressedTensorsSource>(tensors, ckpt::Scheme::kQoqPerChannel);
  if (Is(*weights, "strategy", "group") && Is(*weights, "group_size", kernels::kWeightGroup))
    return std::make_unique<CompressedTensorsSource>(tensors, ckpt::Scheme::kQoqGroup128);
  return Refuse("its weights are scaled neither by channel nor by groups of 128");
}

}  // namespace qserve::quantizer
