// DeepCompressor's model.pt (rounded weights in floating point) with scale.pt: linear_source.h,
// OpenDeepCompressor. The codes are found again by dividing; that they are whole is checked.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "quantizer/import/linear_source.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;

// model.pt holds fp16: a quotient of up to 128 is off by 128 / 2048 / 2 at most.
constexpr double kWhole = 0.2;

// Zeros of one linear.
struct Zeros {
  std::vector<float> values;  // one a row, or a row and group
  bool scaled = false;        // PostScale: in units of the level below, not of the step
};

class DeepCompressorSource final : public LinearSource {
 public:
  DeepCompressorSource(const ForeignTensors& weights, const ForeignTensors& scales,
                       ckpt::Scheme scheme)
      : weights_(weights), scales_(scales), scheme_(scheme) {}

  ckpt::Scheme scheme() const override { return scheme_; }
  absl::StatusOr<kernels::LinearWeight> Read(const ckpt::LinearSpec& linear) const override;

 private:
  absl::StatusOr<Zeros> ReadZeros(const std::string& weight, int64_t count) const;
  absl::Status FillGroups(const std::string& name, kernels::LinearWeight& weight) const;
  absl::Status FillRows(const std::string& name, kernels::LinearWeight& weight) const;

  const ForeignTensors& weights_;
  const ForeignTensors& scales_;
  const ckpt::Scheme scheme_;
};

// The older quantizer stored zeros of signed codes, -8..7, which stand 8 below those of unsigned
// ones; zeros that are all 0 mean that there are none: signed codes again.
void Unsign(Zeros& zeros) {
  if (zeros.scaled) return;
  const auto [low, high] = std::minmax_element(zeros.values.begin(), zeros.values.end());
  if (*low >= 0 && *high != 0) return;
  for (float& zero : zeros.values) zero += 8;
}

absl::StatusOr<Zeros> DeepCompressorSource::ReadZeros(const std::string& weight,
                                                      int64_t count) const {
  Zeros zeros;
  zeros.scaled = scales_.Has(weight + ".scaled_zero");
  if (zeros.scaled && scales_.Has(weight + ".zero")) {
    return absl::InvalidArgumentError(
        fmt::format("{} has both zero and scaled_zero: which of them is meant?", weight));
  }
  ASSIGN_OR_RETURN(zeros.values,
                   scales_.ReadFloats(weight + (zeros.scaled ? ".scaled_zero" : ".zero"), count));
  Unsign(zeros);
  return zeros;
}

// Sets a code if `value` is one.
bool SetCode(double value, uint8_t& code) {
  const double whole = std::round(value);
  if (std::abs(value - whole) > kWhole || whole < 0 || whole > 15) return false;
  code = static_cast<uint8_t>(whole);
  return true;
}

absl::Status NoCode(const std::string& name, int64_t row, int64_t column) {
  return absl::InvalidArgumentError(fmt::format(
      "{}: the weight of row {}, column {} is no 4-bit code under its scales", name, row, column));
}

bool IsWhole(float value, float low, float high) {
  return value == std::round(value) && value >= low && value <= high;
}

absl::Status DeepCompressorSource::FillGroups(const std::string& name,
                                              kernels::LinearWeight& weight) const {
  const int64_t groups = weight.groups(), count = weight.n * groups;
  ASSIGN_OR_RETURN(const std::vector<float> steps, scales_.ReadFloats(name + ".scale.1", count));
  ASSIGN_OR_RETURN(const Zeros zeros, ReadZeros(name, count));
  weight.group_scale.resize(steps.size());
  weight.group_offset.resize(steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    const float offset = zeros.scaled ? zeros.values[i] : zeros.values[i] * steps[i];
    if (!IsWhole(steps[i], 1, 127) || !IsWhole(offset, -2048, 2048)) {
      return absl::InvalidArgumentError(
          fmt::format("{}: step {} or zero {} of group {} is no integer that QoQ can hold", name,
                      steps[i], zeros.values[i], i));
    }
    weight.group_scale[i] = static_cast<uint8_t>(steps[i]);
    weight.group_offset[i] = static_cast<int16_t>(-offset);
  }
  ASSIGN_OR_RETURN(const std::vector<float> values, weights_.ReadFloats(name, weight.n * weight.k));
  for (int64_t n = 0; n < weight.n; ++n) {
    for (int64_t k = 0; k < weight.k; ++k) {
      const auto at = static_cast<size_t>(n * weight.k + k);
      const auto group = static_cast<size_t>(n * groups + k / kernels::kWeightGroup);
      const double level1 = double{values[at]} / double{weight.scale[static_cast<size_t>(n)]};
      if (!SetCode((level1 - weight.group_offset[group]) / weight.group_scale[group],
                   weight.codes[at])) {
        return NoCode(name, n, k);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status DeepCompressorSource::FillRows(const std::string& name,
                                            kernels::LinearWeight& weight) const {
  ASSIGN_OR_RETURN(const Zeros zeros, ReadZeros(name, weight.n));
  ASSIGN_OR_RETURN(const std::vector<float> values, weights_.ReadFloats(name, weight.n * weight.k));
  for (int64_t n = 0; n < weight.n; ++n) {
    const float scale = weight.scale[static_cast<size_t>(n)];
    const float zero = zeros.values[static_cast<size_t>(n)];
    // As QServe's converter does: the product is what is stored, in fp16.
    const float scaled = zeros.scaled ? zero : zero * scale;
    weight.scaled_zero.push_back(kernels::HalfToFloat(kernels::FloatToHalf(scaled)));
    for (int64_t k = 0; k < weight.k; ++k) {
      const auto at = static_cast<size_t>(n * weight.k + k);
      const double code = (double{values[at]} + double{scaled}) / double{scale};
      if (!SetCode(code, weight.codes[at])) return NoCode(name, n, k);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<kernels::LinearWeight> DeepCompressorSource::Read(
    const ckpt::LinearSpec& linear) const {
  const std::string name = linear.name + ".weight";
  const bool group = scheme_ == ckpt::Scheme::kQoqGroup128;
  kernels::LinearWeight weight;
  weight.format = group ? kernels::WeightFormat::kW4Group128 : kernels::WeightFormat::kW4PerChannel;
  weight.n = linear.n;
  weight.k = linear.k;
  weight.codes.resize(static_cast<size_t>(linear.n * linear.k));
  ASSIGN_OR_RETURN(weight.scale, scales_.ReadFloats(name + ".scale.0", linear.n));
  for (const float scale : weight.scale) {
    if (scale > 0 && kernels::HalfToFloat(kernels::FloatToHalf(scale)) == scale) continue;
    return absl::InvalidArgumentError(
        fmt::format("{}: the scale {} is not a positive fp16 value", name, scale));
  }
  RETURN_IF_ERROR(group ? FillGroups(name, weight) : FillRows(name, weight));
  if (const kernels::Status valid = kernels::Validate(weight); !valid.ok())
    return absl::InvalidArgumentError(fmt::format("{}: {}", name, valid.message()));
  return weight;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LinearSource>> OpenDeepCompressor(const ForeignTensors& weights,
                                                                 const ForeignTensors& scales,
                                                                 const ckpt::LinearSpec& sample) {
  const std::string name = sample.name + ".weight";
  if (!scales.Has(name + ".scale.0")) {
    return absl::InvalidArgumentError(
        fmt::format("the scales have no {}.scale.0: they are not DeepCompressor's", name));
  }
  if (scales.Has(name + ".scale.2"))
    return absl::InvalidArgumentError("the weights have three levels of scales; QoQ has two");
  const bool group = scales.Has(name + ".scale.1");
  return std::make_unique<DeepCompressorSource>(
      weights, scales, group ? ckpt::Scheme::kQoqGroup128 : ckpt::Scheme::kQoqPerChannel);
}

}  // namespace qserve::quantizer
