// What every format of other programs is read into: one linear's canonical weights. Implemented by
// the readers of formats beside it, called by import_model.cc.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/quant/linear_weight.h"
#include "quantizer/import/foreign_tensors.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/model_layout.h"

namespace qserve::quantizer {

class LinearSource {
 public:
  virtual ~LinearSource() = default;

  virtual worker::checkpoint::Scheme scheme() const = 0;

  // kW4PerChannel or kW4Group128 of lead 0, without bias. InvalidArgument, with the name, for what
  // is missing, damaged, or not exactly representable: nothing is rounded.
  virtual absl::StatusOr<kernels::LinearWeight> Read(
      const worker::checkpoint::LinearSpec& linear) const = 0;
};

// How the per-group columns of a packed checkpoint are ordered (docs/CHECKPOINTS.md).
enum class ColumnOrder { kAuto, kQserve, kDeepCompressor };

// `tensors` must outlive the result. A checkpoint in QServe's packed layout, of which `sample` is
// one linear (used to tell column orders apart). InvalidArgument: a W8A8 or another layout, or
// kAuto where the data do not show the order.
absl::StatusOr<std::unique_ptr<LinearSource>> OpenQserve(
    const ForeignTensors& tensors, const std::vector<worker::checkpoint::LinearSpec>& sample,
    ColumnOrder order);

// DeepCompressor's rounded weights in floating point with their scales; zeros before or after
// scaling, by their names.
absl::StatusOr<std::unique_ptr<LinearSource>> OpenDeepCompressor(
    const ForeignTensors& weights, const ForeignTensors& scales,
    const worker::checkpoint::LinearSpec& sample);

// compressed-tensors' 4-bit integer weights; `quantization` is that member of config.json.
// InvalidArgument, with the reason, for what QoQ cannot hold exactly.
absl::StatusOr<std::unique_ptr<LinearSource>> OpenCompressedTensors(
    const ForeignTensors& tensors, const nlohmann::json& quantization);

}  // namespace qserve::quantizer
