// See eval_command.h.
#include "quantizer/evaluate/eval_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/cli/options.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/device_factory.h"
#include "quantizer/evaluate/perplexity.h"
#include "quantizer/evaluate/text_tokens.h"
#include "quantizer/progress.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/exec/direct_runner.h"
#include "worker/exec/rank.h"
#include "worker/model/device_status.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
namespace exec = worker::exec;

constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxSequence = int64_t{1} << 24;

struct Flags {
  std::string model, text;
  int64_t max_tokens = 0, sequence_length = 0, stride = 0;
  std::string quantize = "none", kv_cache_dtype = "auto", lm_head_dtype = "auto";
  std::string device = "cpu", log_level = "info";
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
};

absl::Status Run(const Flags& flags, const std::atomic<bool>& interrupted) {
  RETURN_IF_ERROR(InitLogging("eval", flags.log_level, "text"));
  ASSIGN_OR_RETURN(const std::unique_ptr<ckpt::Checkpoint> model,
                   ckpt::Checkpoint::Open(flags.model));
  ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                   ReadTokens(flags.text, flags.model, flags.max_tokens));
  const int64_t length = std::min(flags.sequence_length > 0 ? flags.sequence_length : int64_t{2048},
                                  model->config().max_position_embeddings);
  const int64_t stride = flags.stride > 0 ? std::min(flags.stride, length) : length;
  const std::vector<Window> windows = MakeWindows(std::ssize(tokens), length, stride);

  exec::DirectRunnerOptions options = {.max_tokens = windows.front().size, .max_step_tokens = 256};
  options.weights.reader_threads = flags.threads;
  ASSIGN_OR_RETURN(options.kv_cache, exec::ParseKvCacheType(flags.kv_cache_dtype));
  ASSIGN_OR_RETURN(options.weights.lm_head, exec::ParseLmHeadType(flags.lm_head_dtype));
  ASSIGN_OR_RETURN(options.weights.quantization, exec::ParseQuantize(flags.quantize));
  ASSIGN_OR_RETURN(
      const std::unique_ptr<kernels::Backend> backend,
      worker::model::ToAbsl(kernels::CreateBackend({.device = flags.device,
                                                    .threads = flags.threads,
                                                    .model_type = model->config().float_type})));
  ASSIGN_OR_RETURN(const auto communicator,
                   exec::DefaultCommunicator(/*options=*/{}, /*store=*/nullptr)(*backend));
  ASSIGN_OR_RETURN(const auto runner,
                   exec::DirectRunner::Create(*model, *backend, *communicator, options));
  Progress progress("windows:", std::ssize(windows), ::isatty(STDERR_FILENO) == 1);
  ASSIGN_OR_RETURN(
      const Perplexity result,
      MeasurePerplexity(*runner, *backend, tokens, windows,
                        {.threads = flags.threads,
                         .progress = [&](int64_t done, int64_t) { progress.Step(done); },
                         .interrupted = &interrupted}));
  fmt::print("{} tokens scored in {} windows of {} (stride {})\n", result.surprise.size(),
             result.windows, windows.front().size, stride);
  fmt::print("perplexity {:.4f}\n", result.perplexity());
  return absl::OkStatus();
}

}  // namespace

int EvalCommand(int argc, const char* const* argv, const std::atomic<bool>& interrupted) {
  Flags flags;
  cli::Options options("qserve-quantize eval", "Measure the perplexity of a checkpoint on a text");
  options.Add("model", flags.model, "Directory of the model, full precision or QoQ")->required();
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
