// The measurements of one `eval`: perplexity under each setting, then the layers. Called by
// eval_command.cc and tests; blocks.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quantizer/evaluate/layer_report.h"
#include "quantizer/evaluate/perplexity.h"
#include "quantizer/evaluate/setting.h"
#include "quantizer/evaluate/trial.h"

namespace qserve::quantizer {

struct EvalOptions {
  std::string model;
  std::string reference;  // full-precision directory, to measure divergence from; empty: none
  std::string text;
  int64_t max_tokens = 0;       // 0: all
  int64_t sequence_length = 0;  // 0: 2048, or what the model has
  int64_t stride = 0;           // 0: sequence_length
  // Rows to compare with, in simulation from full precision: "w8a8" (SmoothQuant), "w4a16" (AWQ).
  std::vector<std::string> comparisons;
  std::string calibration;  // text for them
  double smoothquant_alpha = 0.5;
  std::vector<Setting> settings;  // empty: those that the directories can have
  bool layers = true;             // report them, where there is full precision to compare with
  TrialOptions trial;             // max_tokens is set from the windows
  bool terminal = false;          // progress on one line of standard error
  const std::atomic<bool>* interrupted = nullptr;  // may be null
};

// One line of the table.
struct EvalRow {
  Setting setting;
  std::string source;  // the directory that was measured
  std::string head;    // Trial::head
  int64_t tokens = 0;  // scored
  double mean = 0;     // of -ln p
  double perplexity = 0;
  double hit_rate = 0;  // how often the likeliest token was the right one
  // Against the first row, in percent of its perplexity, and the standard error of that (the two
  // measurements see the same tokens).
  double delta_percent = 0;
  double delta_error_percent = 0;
  // With a reference directory: mean divergence of the next-token distribution from the one that
  // the directory gives in full precision (Divergence, in nats), and its standard error.
  std::optional<double> divergence;
  double divergence_error = 0;
};

struct Evaluation {
  int64_t windows = 0;
  int64_t sequence_length = 0;
  int64_t stride = 0;
  std::vector<EvalRow> rows;
  std::string layers_setting;   // empty: no report by layers
  std::string layers_reason;    // why there is none, if one was wanted
  bool layers_aligned = false;  // LayerReport::aligned
  std::vector<LayerError> layers;
};

absl::StatusOr<Evaluation> Evaluate(const EvalOptions& options);

}  // namespace qserve::quantizer
