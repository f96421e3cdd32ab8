// See evaluation.h.
#include "quantizer/evaluate/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "common/log.h"
#include "common/status_macros.h"
#include "quantizer/evaluate/comparison.h"
#include "quantizer/evaluate/text_tokens.h"
#include "quantizer/progress.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;

constexpr int64_t kDefaultLength = 2048;
// Of the windows, for the report by layers: a ratio over tens of thousands of values needs no more.
constexpr size_t kReportWindows = 2;
constexpr int64_t kCalibrationTokens = 32768;

struct Directories {
  std::unique_ptr<ckpt::Checkpoint> model;
  std::unique_ptr<ckpt::Checkpoint> reference;  // may be null

  // Full-precision weights, null if there are none.
  const ckpt::Checkpoint* full() const {
    if (reference != nullptr) return reference.get();
    return model->config().scheme == ckpt::Scheme::kFloat ? model.get() : nullptr;
  }
  const ckpt::Checkpoint& Of(const Setting& setting) const {
    const bool wants_full = !setting.served && setting.weight_bits != 4;
    return wants_full && full() != nullptr ? *full() : *model;
  }
};

absl::StatusOr<Directories> OpenDirectories(const EvalOptions& options) {
  Directories directories;
  ASSIGN_OR_RETURN(directories.model, ckpt::Checkpoint::Open(options.model));
  if (options.reference.empty()) return directories;
  ASSIGN_OR_RETURN(directories.reference, ckpt::Checkpoint::Open(options.reference));
  if (directories.reference->config().scheme != ckpt::Scheme::kFloat) {
    return absl::InvalidArgumentError(
        fmt::format("{} is quantized: no reference", options.reference));
  }
  if (directories.reference->config().vocab_size != directories.model->config().vocab_size)
    return absl::InvalidArgumentError("the reference has another vocabulary");
  return directories;
}

absl::StatusOr<std::vector<Setting>> DefaultSettings(const Directories& directories,
                                                     const EvalOptions& options) {
  const bool has_full = directories.full() != nullptr;
  const bool has_w4 = directories.model->config().scheme != ckpt::Scheme::kFloat ||
                      options.trial.quantize != ckpt::LoadQuantization::kNone;
  std::string names;
  if (has_full) names += "w16a16kv16,w16a8kv16,w16a16kv8,w16a16kv4,";
  if (has_w4) names += "w4a16kv16,w4a8kv16,w4a16kv4,w4a8kv4,";
  names += has_w4 ? "served" : "w16a8kv4";
  return ParseSettings(names);
}

// Paired: the same tokens in both.
void CompareWithFirst(const Perplexity& first, const Perplexity& other, EvalRow& row) {
  const double count = static_cast<double>(first.surprise.size());
  const double shift = other.mean() - first.mean();
  double square = 0;
  for (size_t i = 0; i < first.surprise.size(); ++i) {
    const double deviation = double{other.surprise[i]} - double{first.surprise[i]} - shift;
    square += deviation * deviation;
  }
  row.delta_percent = 100 * std::expm1(shift);
  row.delta_error_percent = 100 * std::exp(shift) * std::sqrt(square) / count;
}

void AverageDivergence(const std::vector<float>& divergence, EvalRow& row) {
  const double count = static_cast<double>(divergence.size());
  double sum = 0, square = 0;
  for (const float value : divergence) sum += value;
  const double mean = sum / count;
  for (const float value : divergence) square += (value - mean) * (value - mean);
  row.divergence = mean;
  row.divergence_error = std::sqrt(square) / count;
}

class Evaluator {
 public:
  Evaluator(const EvalOptions& options, Directories directories, std::vector<int32_t> tokens)
      : options_(options), directories_(std::move(directories)), tokens_(std::move(tokens)) {}

  absl::StatusOr<Evaluation> Run();

 private:
  absl::StatusOr<EvalRow> Measure(const Setting& setting, const Smoothing* smoothing = nullptr);
  absl::Status Compare();
  absl::Status ReportLayers(const std::vector<Setting>& settings);

  const EvalOptions& options_;
  const Directories directories_;
  const std::vector<int32_t> tokens_;
  std::vector<Window> windows_;
  TrialOptions trial_;
  std::unique_ptr<Trial> reference_;  // null: none given
  Perplexity first_;
  Evaluation result_;
};

absl::StatusOr<Evaluation> Evaluator::Run() {
  int64_t positions = directories_.model->config().max_position_embeddings;
  if (directories_.reference != nullptr) {
    positions = std::min(positions, directories_.reference->config().max_position_embeddings);
  }
  if (options_.sequence_length > positions) {
    return absl::InvalidArgumentError(fmt::format(
        "windows of {} tokens, the model has {} positions", options_.sequence_length, positions));
  }
  const int64_t length =
      std::min(options_.sequence_length > 0 ? options_.sequence_length : kDefaultLength, positions);
  if (length < 2) return absl::InvalidArgumentError("windows need two tokens");
  result_.stride = options_.stride > 0 ? std::min(options_.stride, length) : length;
  windows_ = MakeWindows(std::ssize(tokens_), length, result_.stride);
  result_.windows = std::ssize(windows_);
  result_.sequence_length = windows_.front().size;
  trial_ = options_.trial;
  trial_.max_tokens = result_.sequence_length;
  std::vector<Setting> settings = options_.settings;
  if (settings.empty()) {
    ASSIGN_OR_RETURN(settings, DefaultSettings(directories_, options_));
  }
  if (directories_.reference != nullptr) {
    TrialOptions full = trial_;
    full.lm_head = worker::model::LmHeadType::kAuto;
    ASSIGN_OR_RETURN(reference_,
                     Trial::Create(*directories_.reference, *ParseSetting("w16a16kv16"), full));
  }
  for (const Setting& setting : settings) {
    ASSIGN_OR_RETURN(EvalRow row, Measure(setting));
    result_.rows.push_back(std::move(row));
  }
  if (!options_.comparisons.empty()) RETURN_IF_ERROR(Compare());
  reference_.reset();
  if (options_.layers) RETURN_IF_ERROR(ReportLayers(settings));
  return std::move(result_);
}

absl::StatusOr<EvalRow> Evaluator::Measure(const Setting& setting, const Smoothing* smoothing) {
  const ckpt::Checkpoint& source =
      smoothing != nullptr ? *directories_.full() : directories_.Of(setting);
  ASSIGN_OR_RETURN(const std::unique_ptr<Trial> trial,
                   Trial::Create(source, setting, trial_, smoothing));
  Progress progress(setting.name + ", windows:", result_.windows, options_.terminal);
  const auto step = [&](int64_t done, int64_t) { progress.Step(done); };
  Reference reference;
  if (reference_ != nullptr)
    reference = {.runner = &reference_->runner(), .backend = &reference_->backend()};
  ASSIGN_OR_RETURN(Perplexity measured,
                   MeasurePerplexity(trial->runner(), trial->backend(), tokens_, windows_,
                                     {.threads = trial_.threads,
                                      .reference = reference,
                                      .progress = step,
                                      .interrupted = options_.interrupted}));
  EvalRow row = {
      .setting = setting,
      .source = &source == directories_.reference.get() ? options_.reference : options_.model,
      .head = trial->head(),
      .tokens = std::ssize(measured.surprise),
      .mean = measured.mean(),
      .perplexity = measured.perplexity()};
  row.hit_rate = static_cast<double>(measured.hits) / static_cast<double>(row.tokens);
  if (reference_ != nullptr) AverageDivergence(measured.divergence, row);
  if (result_.rows.empty()) {
    first_ = std::move(measured);
  } else {
    CompareWithFirst(first_, measured, row);
  }
  return row;
}

// Rows of other ways to quantize.
absl::Status Evaluator::Compare() {
  const ckpt::Checkpoint* full = directories_.full();
  if (full == nullptr)
    return absl::InvalidArgumentError("comparisons need full-precision weights: --reference");
  if (options_.calibration.empty())
    return absl::InvalidArgumentError("comparisons need text for their statistics: --calibration");
  ASSIGN_OR_RETURN(const std::vector<int32_t> text,
                   ReadTokens(options_.calibration, options_.model, kCalibrationTokens));
  const std::vector<Window> windows =
      MakeWindows(std::ssize(text), trial_.max_tokens, trial_.max_tokens);
  LOG_INFO("reading {} windows of calibration text", windows.size());
  ASSIGN_OR_RETURN(const ModelStatistics statistics,
                   CollectStatistics(*full, trial_, text, windows, options_.interrupted));
  for (const std::string& name : options_.comparisons) {
    const bool awq = name == "w4a16";
    if (!awq && name != "w8a8") {
      return absl::InvalidArgumentError(
          fmt::format("\"{}\" is no comparison: w8a8 (SmoothQuant) or w4a16 (AWQ)", name));
    }
    ASSIGN_OR_RETURN(Setting setting, ParseSetting(awq ? "w4a16kv16" : "w8a8kv16"));
    setting.name += awq ? "-awq" : "-smoothquant";
    ASSIGN_OR_RETURN(
        const Smoothing smoothing,
        awq ? Awq(*full, statistics) : SmoothQuant(*full, statistics, options_.smoothquant_alpha));
    ASSIGN_OR_RETURN(EvalRow row, Measure(setting, &smoothing));
    result_.rows.push_back(std::move(row));
  }
  return absl::OkStatus();
}

// Of the last setting, which by default has everything quantized.
absl::Status Evaluator::ReportLayers(const std::vector<Setting>& settings) {
  const Setting& setting = settings.back();
  const ckpt::Checkpoint* full = directories_.full();
  if (full == nullptr) {
    result_.layers_reason = "there is no full-precision directory to compare with (--reference)";
    return absl::OkStatus();
  }
  if (setting.full_precision()) return absl::OkStatus();
  const auto windows =
      std::span<const Window>(windows_).first(std::min(kReportWindows, windows_.size()));
  LOG_INFO("comparing the layers of {} with full precision", setting.name);
  absl::StatusOr<LayerReport> report =
      CompareLayers({.reference = *full, .model = directories_.Of(setting), .setting = setting},
                    trial_, tokens_, windows, options_.interrupted);
  if (absl::IsInvalidArgument(report.status()) || absl::IsUnimplemented(report.status())) {
    result_.layers_reason = std::string(report.status().message());
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(report.status());
  result_.layers_setting = setting.name;
  result_.layers_aligned = report->aligned;
  result_.layers = std::move(report->errors);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Evaluation> Evaluate(const EvalOptions& options) {
  ASSIGN_OR_RETURN(Directories directories, OpenDirectories(options));
  ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                   ReadTokens(options.text, options.model, options.max_tokens));
  return Evaluator(options, std::move(directories), std::move(tokens)).Run();
}

}  // namespace qserve::quantizer
