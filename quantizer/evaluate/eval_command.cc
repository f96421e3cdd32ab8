// See eval_command.h.
#include "quantizer/evaluate/eval_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cli/options.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "quantizer/evaluate/evaluation.h"
#include "quantizer/evaluate/report.h"
#include "quantizer/evaluate/setting.h"
#include "quantizer/evaluate/svg_plot.h"
#include "worker/checkpoint/output_directory.h"
#include "worker/exec/executor_options.h"

namespace qserve::quantizer {
namespace {

namespace exec = worker::exec;

constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxSequence = int64_t{1} << 24;

struct Flags {
  std::string model, reference, text, settings, json, plot, calibration;
  std::vector<std::string> simulate;
  double smoothquant_alpha = 0.5;
  int64_t max_tokens = 0, sequence_length = 0, stride = 0;
  bool no_layers = false;
  std::string quantize = "none", kv_cache_dtype = "auto", lm_head_dtype = "auto";
  std::string device = "cpu", log_level = "info";
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
};

// To the file, or to standard output for "-".
absl::Status Write(const std::string& path, const std::string& contents) {
  if (path == "-") {
    std::fwrite(contents.data(), 1, contents.size(), stdout);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(auto file, worker::checkpoint::OutputFile::Create(path));
  RETURN_IF_ERROR(file.Write(std::as_bytes(std::span(contents))));
  return file.Close();
}

absl::StatusOr<EvalOptions> OptionsOf(const Flags& flags, const std::atomic<bool>& interrupted) {
  EvalOptions options = {.model = flags.model,
                         .reference = flags.reference,
                         .text = flags.text,
                         .max_tokens = flags.max_tokens,
                         .sequence_length = flags.sequence_length,
                         .stride = flags.stride,
                         .comparisons = flags.simulate,
                         .calibration = flags.calibration,
                         .smoothquant_alpha = flags.smoothquant_alpha,
                         .layers = !flags.no_layers,
                         .terminal = ::isatty(STDERR_FILENO) == 1,
                         .interrupted = &interrupted};
  if (!flags.settings.empty()) {
    ASSIGN_OR_RETURN(options.settings, ParseSettings(flags.settings));
  }
  options.trial.threads = flags.threads;
  options.trial.device = flags.device;
  ASSIGN_OR_RETURN(options.trial.kv_cache, exec::ParseKvCacheType(flags.kv_cache_dtype));
  ASSIGN_OR_RETURN(options.trial.lm_head, exec::ParseLmHeadType(flags.lm_head_dtype));
  ASSIGN_OR_RETURN(options.trial.quantize, exec::ParseQuantize(flags.quantize));
  return options;
}

absl::Status Run(const Flags& flags, const std::atomic<bool>& interrupted) {
  RETURN_IF_ERROR(InitLogging("eval", flags.log_level, "text"));
  ASSIGN_OR_RETURN(const EvalOptions options, OptionsOf(flags, interrupted));
  ASSIGN_OR_RETURN(const Evaluation evaluation, Evaluate(options));
  if (flags.json != "-") RETURN_IF_ERROR(Write("-", TextReport(evaluation)));
  if (!flags.json.empty()) RETURN_IF_ERROR(Write(flags.json, JsonReport(evaluation)));
  if (flags.plot.empty()) return absl::OkStatus();
  if (evaluation.layers.empty())
    return absl::InvalidArgumentError("nothing to plot: there is no report by layers");
  return Write(flags.plot, LayerPlot(evaluation.layers, PlotTitle(flags.model, evaluation)));
}

}  // namespace

int EvalCommand(int argc, const char* const* argv, const std::atomic<bool>& interrupted) {
  Flags flags;
  cli::Options options(
      "qserve-quantize eval",
      "Measure what quantization costs a checkpoint: perplexity on a text with weights, "
      "activations and KV cache quantized, and the error of each layer");
  options.Add("model", flags.model, "Directory of the model, full precision or QoQ")->required();
  options.Add(
      "reference", flags.reference,
      "Full-precision directory of the same model, to compare with: KL of each row from it");
  options.Add("text", flags.text, "UTF-8 text, or .jsonl with a member \"text\"")->required();
  options.Add("max-tokens", flags.max_tokens, "Use this many tokens of the text; 0: all")
      ->check(CLI::NonNegativeNumber);
  options
      .Add("sequence-length", flags.sequence_length,
           "Tokens of a window; 0: 2048, or fewer if the model has fewer positions")
      ->check(CLI::Range(int64_t{0}, kMaxSequence));
  options
      .Add("stride", flags.stride, "From one window's start to the next; 0: the window's length")
      ->check(CLI::Range(int64_t{0}, kMaxSequence));
  options.Add("settings", flags.settings,
              "What to quantize, separated by commas: \"served\" as a worker does, or "
              "w{16,8,4}a{16,8}kv{16,8,4}; default: whatever the directories can have");
  options
      .Add("simulate", flags.simulate,
           "Rows to compare with, simulated from full precision: w8a8 (SmoothQuant), w4a16 (AWQ)")
      ->delimiter(',');
  options.Add("calibration", flags.calibration, "Text that --simulate takes its statistics from");
  options.Add("smoothquant-alpha", flags.smoothquant_alpha, "Of --simulate w8a8")
      ->check(CLI::Range(0.0, 1.0));
  options.Add("json", flags.json,
              "Write the figures as JSON to this file; -: instead of the table");
  options.Add("plot", flags.plot, "Draw the report by layers into this SVG file");
  options.AddFlag("no-layers", flags.no_layers, "Leave out the report by layers");
  options.Add("quantize", flags.quantize, "none, rtn-g128 or rtn-gchn: round weights when loading");
  options.Add("kv-cache-dtype", flags.kv_cache_dtype, "auto, int4, int8, fp16 or fp32");
  options.Add("lm-head-dtype", flags.lm_head_dtype, "auto, fp16, int8 or int4");
  options.Add("device", flags.device, "cpu, cuda or auto");
  options.Add("threads", flags.threads, "Threads to use")->check(CLI::Range(1, kMaxThreads));
  options.Add("log-level", flags.log_level, "debug, info, warn or error");
  if (const std::optional<int> code = options.Parse(argc, argv)) return *code;
  if (const absl::Status status = Run(flags, interrupted); !status.ok()) {
    std::fputs(fmt::format("qserve-quantize eval: {}\n", std::string(status.message())).c_str(),
               stderr);
    return 1;
  }
  return 0;
}

}  // namespace qserve::quantizer
