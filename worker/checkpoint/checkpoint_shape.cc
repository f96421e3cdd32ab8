// See checkpoint_shape.h.
#include "worker/checkpoint/checkpoint_shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <initializer_list>

#include "common/status_macros.h"
#include "worker/checkpoint/model_layout.h"

namespace qserve::worker::checkpoint {
namespace {

constexpr std::initializer_list<Dtype> kFloats = {Dtype::kF32, Dtype::kF16, Dtype::kBf16};
constexpr std::initializer_list<Dtype> kBytes = {Dtype::kI8, Dtype::kU8};
constexpr std::initializer_list<Dtype> kHalf = {Dtype::kF16};

absl::Status CheckTensor(const TensorSet& tensors, const std::string& name,
                         const std::vector<int64_t>& shape, std::initializer_list<Dtype> dtypes) {
  const std::optional<TensorView> tensor = tensors.Find(name);
  if (!tensor) return absl::InvalidArgumentError(fmt::format("tensor {} is missing", name));
  if (!std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end())) {
    return absl::InvalidArgumentError(
        fmt::format("tensor {} has the shape [{}], config.json asks for [{}]", name,
                    fmt::join(tensor->shape, ", "), fmt::join(shape, ", ")));
  }
  if (std::find(dtypes.begin(), dtypes.end(), tensor->dtype) == dtypes.end()) {
    return absl::InvalidArgumentError(
        fmt::format("tensor {} has the dtype {}, which is not one it can have", name,
                    DtypeName(tensor->dtype)));
  }
  return absl::OkStatus();
}

absl::Status CheckQoqLinear(const TensorSet& tensors, const LinearSpec& linear, Scheme scheme) {
  const bool group = scheme == Scheme::kQoqGroup128;
  if (linear.n % 32 != 0 || linear.k % (group ? 128 : 32) != 0) {
    return absl::InvalidArgumentError(
        fmt::format("{} is {} x {}: QoQ stores multiples of 32 rows and {} columns", linear.name,
                    linear.n, linear.k, group ? 128 : 32));
  }
  RETURN_IF_ERROR(CheckTensor(tensors, linear.name + ".qweight", {linear.n, linear.k / 2}, kBytes));
  RETURN_IF_ERROR(CheckTensor(tensors, linear.name + ".s1_scales", {linear.n}, kHalf));
  if (!group) return CheckTensor(tensors, linear.name + ".s1_szeros", {linear.n}, kHalf);
  RETURN_IF_ERROR(
      CheckTensor(tensors, linear.name + ".s2_scales", {linear.k / 128, linear.n}, kBytes));
  return CheckTensor(tensors, linear.name + ".s2_zeros", {linear.k / 128, linear.n}, kBytes);
}

absl::Status CheckLayer(const ModelConfig& config, const TensorSet& tensors, int64_t layer) {
  for (const LinearSpec& linear : LayerLinears(config, layer)) {
    if (config.scheme == Scheme::kFloat) {
      RETURN_IF_ERROR(CheckTensor(tensors, linear.name + ".weight", {linear.n, linear.k}, kFloats));
    } else {
      RETURN_IF_ERROR(CheckQoqLinear(tensors, linear, config.scheme));
    }
    const std::string bias = linear.name + ".bias";
    if (linear.bias) {
      RETURN_IF_ERROR(CheckTensor(tensors, bias, {linear.n}, kFloats));
    } else if (tensors.Has(bias)) {
      return absl::InvalidArgumentError(
          fmt::format("tensor {} is there, but {} with this config.json has no such bias", bias,
                      config.architecture));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Scheme> DetectScheme(const TensorSet& tensors) {
  const std::string linear = "model.layers.0.self_attn.q_proj";
  if (tensors.Has(linear + ".weight") && !tensors.Has(linear + ".dequant_scale"))
    return Scheme::kFloat;
  if (tensors.Has(linear + ".s2_scales")) return Scheme::kQoqGroup128;
  if (tensors.Has(linear + ".s1_szeros")) return Scheme::kQoqPerChannel;
  if (tensors.Has(linear + ".dequant_scale")) {
    return absl::InvalidArgumentError(
        "this is a W8A8 checkpoint, which is not supported; supported are QoQ (W4A8) and floating "
        "point");
  }
  return absl::InvalidArgumentError(
      fmt::format("{} has neither weight nor the tensors of QoQ (s1_szeros or s2_scales)", linear));
}

absl::Status CheckTensors(const ModelConfig& config, const TensorSet& tensors) {
  for (const TensorSpec& spec : FloatTensors(config)) {
    if (spec.role == TensorRole::kLinearWeight || spec.role == TensorRole::kLinearBias) continue;
    RETURN_IF_ERROR(CheckTensor(tensors, spec.name, spec.shape, kFloats));
  }
  for (int64_t layer = 0; layer < config.layers; ++layer)
    RETURN_IF_ERROR(CheckLayer(config, tensors, layer));
  return absl::OkStatus();
}

}  // namespace qserve::worker::checkpoint
