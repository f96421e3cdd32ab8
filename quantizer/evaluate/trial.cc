// See trial.h.
#include "quantizer/evaluate/trial.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/status_macros.h"
#include "kernels/device_factory.h"
#include "kernels/quant/rtn.h"
#include "worker/exec/kv_cache.h"
#include "worker/exec/rank.h"
#include "worker/model/device_status.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
namespace exec = worker::exec;
using worker::model::ToAbsl;

constexpr int64_t kStepTokens = 256;  // bounds the memory for logits

exec::KvCacheType KvCacheOf(int bits) {
  return bits == 4   ? exec::KvCacheType::kInt4
         : bits == 8 ? exec::KvCacheType::kInt8
                     : exec::KvCacheType::kFp32;
}

SimulatedCheckpoint::LinearSource AsStored(const ckpt::Checkpoint& source,
                                           ckpt::LoadQuantization quantization) {
  return [&source, quantization](const std::string& name, ckpt::Range rows, ckpt::Range columns) {
    return source.ReadLinear(name, rows, columns, quantization);
  };
}

SimulatedCheckpoint::LinearSource Int8PerRow(const ckpt::Checkpoint& source) {
  return [&source](const std::string& name, ckpt::Range rows,
                   ckpt::Range columns) -> absl::StatusOr<kernels::LinearWeight> {
    ASSIGN_OR_RETURN(kernels::LinearWeight weight,
                     source.ReadLinear(name, rows, columns, ckpt::LoadQuantization::kNone));
    std::vector<float> values(static_cast<size_t>(weight.n * weight.k));
    for (int64_t row = 0; row < weight.n; ++row)
      kernels::DequantizeRow(weight, row, values.data() + row * weight.k);
    ASSIGN_OR_RETURN(kernels::LinearWeight rounded,
                     ToAbsl(kernels::RtnInt8PerRow(values.data(), weight.n, weight.k)));
    rounded.bias = std::move(weight.bias);
    return rounded;
  };
}

// The linears of a simulation; InvalidArgument where `source` cannot have them.
absl::StatusOr<SimulatedCheckpoint::LinearSource> LinearsOf(const ckpt::Checkpoint& source,
                                                            const Setting& setting,
                                                            ckpt::LoadQuantization quantize) {
  const bool quantized = source.config().scheme != ckpt::Scheme::kFloat;
  if (setting.weight_bits == 4) {
    if (!quantized && quantize == ckpt::LoadQuantization::kNone) {
      return absl::InvalidArgumentError(
          fmt::format("{} needs a QoQ directory, or --quantize", setting.name));
    }
    return AsStored(source, quantized ? ckpt::LoadQuantization::kNone : quantize);
  }
  if (quantized) {
    return absl::InvalidArgumentError(
        fmt::format("{} needs full-precision weights: name them by --reference", setting.name));
  }
  return setting.weight_bits == 8 ? Int8PerRow(source)
                                  : AsStored(source, ckpt::LoadQuantization::kNone);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Trial>> Trial::Create(const ckpt::Checkpoint& source,
                                                     const Setting& setting,
                                                     const TrialOptions& options,
                                                     const Smoothing* smoothing,
                                                     worker::model::ActivationObserver* observer) {
  std::unique_ptr<Trial> trial(new Trial());
  exec::DirectRunnerOptions runner = {
      .max_tokens = options.max_tokens, .max_step_tokens = kStepTokens, .observer = observer};
  runner.weights.lm_head = options.lm_head;
  runner.weights.reader_threads = options.threads;
  const std::string device = setting.served ? options.device : "cpu";
  ASSIGN_OR_RETURN(trial->backend_,
                   ToAbsl(kernels::CreateBackend({.device = device,
                                                  .threads = options.threads,
                                                  .model_type = source.config().float_type})));
  trial->tap_ = std::make_unique<TappedBackend>(*trial->backend_);
  if (setting.served) {
    runner.kv_cache = options.kv_cache;
    const bool quantized = source.config().scheme != ckpt::Scheme::kFloat;
    if (!quantized) runner.weights.quantization = options.quantize;
    RETURN_IF_ERROR(trial->Load(source, options, runner));
    return trial;
  }
  runner.kv_cache = KvCacheOf(setting.kv_bits);
  SimulatedCheckpoint::LinearSource linears;
  if (smoothing != nullptr) {
    linears = smoothing->linears;
    for (const auto& [place, divisor] : smoothing->divisors)
      trial->tap_->SmoothInputs(place, divisor);
  } else {
    ASSIGN_OR_RETURN(linears, LinearsOf(source, setting, options.quantize));
  }
  if (setting.activation_bits == 8) trial->tap_->RoundInputs();
  trial->simulated_ = std::make_unique<SimulatedCheckpoint>(source, std::move(linears));
  RETURN_IF_ERROR(trial->Load(*trial->simulated_, options, runner));
  return trial;
}

absl::Status Trial::Load(const ckpt::Checkpoint& checkpoint, const TrialOptions& options,
                         exec::DirectRunnerOptions runner) {
  runner.max_tokens = std::min(options.max_tokens, checkpoint.config().max_position_embeddings);
  kv_formats_ =
      exec::LayerKvFormats(checkpoint.config(), runner.kv_cache, runner.weights.quantization);
  ASSIGN_OR_RETURN(communicator_,
                   exec::DefaultCommunicator(/*options=*/{}, /*store=*/nullptr)(*tap_));
  ASSIGN_OR_RETURN(runner_, exec::DirectRunner::Create(checkpoint, *tap_, *communicator_, runner));
  tap_->Know(runner_->model().weights());
  return absl::OkStatus();
}

std::string Trial::head() const {
  switch (runner_->model().weights().lm_head->format) {
    case kernels::WeightFormat::kFloat:
      return "float";
    case kernels::WeightFormat::kHalfFixedOrder:
      return "fp16";
    case kernels::WeightFormat::kW8:
      return "int8";
    case kernels::WeightFormat::kW4PerChannel:
    case kernels::WeightFormat::kW4Group128:
      return "int4";
  }
  return "";
}

}  // namespace qserve::quantizer
