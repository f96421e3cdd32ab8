// See layer_report.h.
#include "quantizer/evaluate/layer_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/quant/kv_quant.h"
#include "quantizer/evaluate/signal_error.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
using kernels::Matrix;
using worker::model::LinearInput;

constexpr int64_t kStepTokens = 256;

// What a layer computes, in the order of the report.
enum Signal { kQ, kK, kV, kKey, kValue, kO, kGate, kUp, kDown, kSignals };
constexpr std::array<const char*, kSignals> kSignalNames = {
    "q_proj", "k_proj", "v_proj", "key", "value", "o_proj", "gate_proj", "up_proj", "down_proj"};

// Where the outputs of a step go: kept from the reference, compared with those kept from the model.
class Signals {
 public:
  // How each signal is compared: `rotation` null, as it is.
  Signals(const ckpt::ModelConfig& config, const Eigen::MatrixXd* rotation)
      : kept_(static_cast<size_t>(config.layers) * kSignals) {
    for (size_t i = 0; i < kept_.size(); ++i)
      errors_.push_back(Measure(static_cast<Signal>(i % kSignals), config, rotation));
  }

  void Compare(bool compare) { compare_ = compare; }
  void Add(int64_t layer, Signal signal, int64_t rows, std::vector<float> values) {
    const auto index = static_cast<size_t>(layer * kSignals + signal);
    if (!compare_) {
      kept_[index] = std::move(values);
      return;
    }
    const std::vector<float> reference = std::move(kept_[index]);
    QSERVE_CHECK(reference.size() == values.size());
    const int64_t cols = std::ssize(values) / rows;
    errors_[index]->Add({reference.data(), rows, cols, cols}, {values.data(), rows, cols, cols});
  }
  std::vector<LayerError> Errors() const {
    std::vector<LayerError> errors;
    for (size_t i = 0; i < errors_.size(); ++i) {
      errors.push_back(
          {static_cast<int64_t>(i) / kSignals, kSignalNames[i % kSignals], errors_[i]->snr_db()});
    }
    return errors;
  }

 private:
  static std::unique_ptr<SignalError> Measure(Signal signal, const ckpt::ModelConfig& config,
                                              const Eigen::MatrixXd* rotation) {
    if (rotation == nullptr) return DirectError();
    if (signal == kO || signal == kDown) return Turned(*rotation);
    if (signal == kV || signal == kValue) return UpToHeadMaps(config.head_dim);
    return UpToGains();
  }

  bool compare_ = false;
  std::vector<std::vector<float>> kept_;
  std::vector<std::unique_ptr<SignalError>> errors_;
};

std::vector<float> CopyColumns(const kernels::FloatMatrix& out, int64_t first, int64_t count) {
  std::vector<float> values;
  values.reserve(static_cast<size_t>(out.rows * count));
  for (int64_t r = 0; r < out.rows; ++r) {
    const float* row = out.row(r) + first;
    values.insert(values.end(), row, row + count);
  }
  return values;
}

// Hears one model: its linears through the backend, its keys as an observer.
class Listener final : public worker::model::ActivationObserver {
 public:
  Listener(const ckpt::ModelConfig& config, Signals& signals)
      : config_(config), signals_(signals) {}

  void SetKvFormats(std::vector<kernels::KvFormat> formats) { formats_ = std::move(formats); }

  void OnLinear(LinearPlace place, const kernels::FloatMatrix& out) {
    const int64_t q = int64_t{config_.heads} * config_.head_dim;
    const int64_t kv = int64_t{config_.kv_heads} * config_.head_dim;
    switch (place.input) {
      case LinearInput::kQkv:
        signals_.Add(place.layer, kQ, out.rows, CopyColumns(out, 0, q));
        signals_.Add(place.layer, kK, out.rows, CopyColumns(out, q, kv));
        signals_.Add(place.layer, kV, out.rows, CopyColumns(out, q + kv, kv));
        signals_.Add(place.layer, kValue, out.rows,
                     AsStored(place.layer, CopyColumns(out, q + kv, kv)));
        break;
      case LinearInput::kO:
        signals_.Add(place.layer, kO, out.rows, CopyColumns(out, 0, out.cols));
        break;
      case LinearInput::kGateUp:
        signals_.Add(place.layer, kGate, out.rows, CopyColumns(out, 0, out.cols / 2));
        signals_.Add(place.layer, kUp, out.rows, CopyColumns(out, out.cols / 2, out.cols / 2));
        break;
      case LinearInput::kDown:
        signals_.Add(place.layer, kDown, out.rows, CopyColumns(out, 0, out.cols));
        break;
    }
  }

  void OnLinearInput(int64_t, LinearInput, Matrix<const float>) override {}
  void OnRotated(int64_t layer, Matrix<const float>, Matrix<const float> k) override {
    std::vector<float> keys;
    for (int64_t r = 0; r < k.rows; ++r) keys.insert(keys.end(), k.row(r), k.row(r) + k.cols);
    signals_.Add(layer, kKey, k.rows, AsStored(layer, std::move(keys)));
  }
  void OnBlockOutput(int64_t, Matrix<const float>) override {}

 private:
  std::vector<float> AsStored(int64_t layer, std::vector<float> values) const {
    const kernels::KvFormat format = formats_[static_cast<size_t>(layer)];
    for (size_t i = 0; i < values.size(); i += static_cast<size_t>(config_.head_dim))
      kernels::SimulateKv(format, values.data() + i, config_.head_dim);
    return values;
  }

  const ckpt::ModelConfig& config_;
  Signals& signals_;
  std::vector<kernels::KvFormat> formats_;
};

absl::Status CheckComparable(const ReportSource& source) {
  const ckpt::ModelConfig &a = source.reference.config(), &b = source.model.config();
  if (a.layers != b.layers || a.hidden_size != b.hidden_size || a.heads != b.heads ||
      a.kv_heads != b.kv_heads || a.head_dim != b.head_dim || a.vocab_size != b.vocab_size ||
      a.intermediate_size != b.intermediate_size) {
    return absl::InvalidArgumentError("the reference is a model of another shape");
  }
  return absl::OkStatus();
}

absl::Status RunWindow(Trial& trial, std::span<const int32_t> tokens, int64_t begin) {
  const auto count = static_cast<size_t>(std::min(kStepTokens, std::ssize(tokens) - begin));
  return trial.runner().Step(tokens.subspan(static_cast<size_t>(begin), count), begin);
}

}  // namespace

absl::StatusOr<LayerReport> CompareLayers(const ReportSource& source, const TrialOptions& options,
                                          std::span<const int32_t> tokens,
                                          std::span<const Window> windows,
                                          const std::atomic<bool>* interrupted) {
  if (source.setting.served && options.device != "cpu")
    return absl::UnimplementedError("layers can be compared on the CPU only");
  RETURN_IF_ERROR(CheckComparable(source));
  const ckpt::ModelConfig& config = source.model.config();
  std::optional<Eigen::MatrixXd> rotation;
  if (&source.reference != &source.model) {
    ASSIGN_OR_RETURN(rotation, FindRotation(source.reference, source.model));
    if (!rotation)
      return absl::InvalidArgumentError(
          "the embeddings of the reference are those of another model");
  }
  Signals signals(config, rotation ? &*rotation : nullptr);
  Listener reference_listener(config, signals), model_listener(config, signals);
  ASSIGN_OR_RETURN(const Setting full, ParseSetting("w16a16kv16"));
  ASSIGN_OR_RETURN(const std::unique_ptr<Trial> reference,
                   Trial::Create(source.reference, full, options, nullptr, &reference_listener));
  ASSIGN_OR_RETURN(const std::unique_ptr<Trial> model,
                   Trial::Create(source.model, source.setting, options, nullptr, &model_listener));
  const auto connect = [](Trial& trial, Listener& listener) {
    listener.SetKvFormats(trial.kv_formats());
    trial.backend().Listen([&listener](LinearPlace place, const kernels::FloatMatrix& out) {
      listener.OnLinear(place, out);
    });
  };
  connect(*reference, reference_listener);
  connect(*model, model_listener);
  for (const Window& window : windows) {
    const auto sequence =
        tokens.subspan(static_cast<size_t>(window.begin), static_cast<size_t>(window.size));
    for (int64_t begin = 0; begin < window.size; begin += kStepTokens) {
      if (interrupted != nullptr && *interrupted) return absl::CancelledError("interrupted");
      signals.Compare(false);
      RETURN_IF_ERROR(RunWindow(*reference, sequence, begin));
      signals.Compare(true);
      RETURN_IF_ERROR(RunWindow(*model, sequence, begin));
    }
  }
  return LayerReport{.aligned = rotation.has_value(), .errors = signals.Errors()};
}

}  // namespace qserve::quantizer
