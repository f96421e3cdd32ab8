#include "bench/offline.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "bench/workload.h"
#include "common/status_macros.h"
#include "worker/engine/token_channel.h"

namespace qserve::bench {
namespace {

using worker::engine::Engine;
using worker::engine::EngineRequest;
using worker::engine::FinishReason;
using worker::engine::TokenChannel;
using worker::engine::TokenEvent;
using Json = nlohmann::ordered_json;

constexpr int32_t kBlockTokens = worker::plan::kBlockTokens;
constexpr int32_t kWarmUpPrompt = 64;
constexpr int32_t kWarmUpOutput = 4;

// One batch on its way.
class Batch {
 public:
  Batch(Engine& engine, const Clock& clock) : engine_(engine), clock_(clock) {}

  // Everything is submitted before the first step. `first_prompt` numbers the prompts: no two
  // batches share any.
  absl::StatusOr<OfflineRun> Run(const OfflineOptions& options, int64_t first_prompt,
                                 int32_t prompt_length, int32_t output_length, int64_t vocabulary) {
    const int64_t steps_before = engine_.Stats().steps;
    std::vector<EngineRequest> requests;
    for (int32_t i = 0; i < options.batch; ++i) {
      EngineRequest request;
      request.id = engine_.NextRequestId();
      request.prompt = RandomPrompt(options.seed, first_prompt + i, prompt_length, vocabulary);
      request.sampling.temperature = 0;
      request.max_tokens = output_length;
      request.use_prefix_cache = false;
      request.channel = std::make_shared<TokenChannel>([] {});
      channels_.push_back(request.channel);
      requests.push_back(std::move(request));
    }
    start_ = clock_.Now();
    for (EngineRequest& request : requests) {
      request.arrival = start_;
      RETURN_IF_ERROR(engine_.Submit(std::move(request)));
    }
    while (finished_ < options.batch) {
      ASSIGN_OR_RETURN(const bool worked, engine_.RunOnce());
      if (!worked) return absl::InternalError("the engine has nothing to do, but is not done");
      RETURN_IF_ERROR(Collect());
    }
    return Measured(options.batch, output_length, engine_.Stats().steps - steps_before);
  }

 private:
  absl::Status Collect() {
    const TimePoint now = clock_.Now();
    for (const auto& channel : channels_) {
      for (const TokenEvent& event : channel->TakeAll()) {
        RETURN_IF_ERROR(event.error);
        if (event.finish != FinishReason::kNone && event.finish != FinishReason::kLength)
          return absl::InternalError("a sequence ended before its length");
        if (event.token && !started_.contains(event.request)) {
          started_.insert(event.request);
          last_first_token_ = now;
          // Tokens that come with or after this one in the same step are still the prefill's.
          tokens_at_last_start_.reset();
        }
        tokens_ += event.token ? 1 : 0;
        finished_ += event.finish != FinishReason::kNone ? 1 : 0;
        last_token_ = now;
      }
    }
    if (!tokens_at_last_start_) tokens_at_last_start_ = tokens_;
    return absl::OkStatus();
  }

  absl::StatusOr<OfflineRun> Measured(int32_t batch, int32_t output_length, int64_t steps) const {
    if (tokens_ != int64_t{batch} * output_length)
      return absl::InternalError(
          fmt::format("{} tokens came, not {} x {}", tokens_, batch, output_length));
    const int64_t before = tokens_at_last_start_.value_or(tokens_);
    return OfflineRun{.prefill_seconds = ToSeconds(last_first_token_ - start_),
                      .decode_seconds = ToSeconds(last_token_ - last_first_token_),
                      .decode_tokens = tokens_ - before,
                      .early_tokens = before - batch,
                      .steps = steps};
  }

  Engine& engine_;
  const Clock& clock_;
  std::vector<std::shared_ptr<TokenChannel>> channels_;
  std::set<worker::engine::RequestId> started_;
  TimePoint start_, last_first_token_, last_token_;
  std::optional<int64_t> tokens_at_last_start_;  // all tokens by then
  int64_t tokens_ = 0;
  int32_t finished_ = 0;
};

// The scheduler keeps some blocks available when it admits, so a cache that fits exactly is not
// enough.
int64_t BlocksOf(int64_t batch, int64_t positions) {
  const int64_t blocks = (positions + kBlockTokens - 1) / kBlockTokens * batch;
  return blocks + blocks / 16 + batch + 8;
}

// Preemption would be measured otherwise, as if it were decoding.
absl::Status CheckFits(const OfflineOptions& options, const worker::exec::ExecutorLimits& limits) {
  const int64_t positions = int64_t{options.prompt_length} + options.output_length;
  const int64_t enough = BlocksOf(options.batch, positions);
  // Too small a cache also shortens the context, so it is named first.
  if (enough > limits.blocks) {
    return absl::InvalidArgumentError(fmt::format(
        "the batch takes {} KV blocks, and there are {}: give at least --kv-cache-memory {}MiB",
        enough, limits.blocks, (enough * kBlockTokens * limits.kv_bytes_per_token >> 20) + 1));
  }
  if (positions > limits.max_model_len) {
    return absl::InvalidArgumentError(
        fmt::format("prompt and output have {} positions, more than the context of {}", positions,
                    limits.max_model_len));
  }
  if (options.batch > limits.slots) {
    return absl::InvalidArgumentError(
        fmt::format("the batch of {} is more than the {} at once", options.batch, limits.slots));
  }
  return absl::OkStatus();
}

Json DescribeModel(const OfflineOptions& options, const worker::exec::Rank& rank) {
  const worker::exec::ModelDescription& model = rank.description();
  return {{"directory", options.executor.model_dir},
          {"architecture", model.config.architecture},
          {"numerics_id", model.numerics_id},
          {"device", model.device.name},
          {"isa", model.device.isa},
          {"threads", options.executor.threads},
          {"weight_bytes", model.weight_bytes},
          {"kv_bytes_per_token", rank.limits().kv_bytes_per_token},
          {"kv_blocks", rank.limits().blocks},
          {"max_num_batched_tokens", options.executor.max_num_batched_tokens}};
}

std::vector<double> PrefillRates(const OfflineOptions& options, const OfflineResult& result) {
  std::vector<double> rates;
  const double tokens = static_cast<double>(options.batch) * options.prompt_length;
  for (const OfflineRun& run : result.runs) rates.push_back(tokens / run.prefill_seconds);
  return rates;
}

// Empty when one token is generated: nothing is decoded.
std::vector<double> DecodeRates(const OfflineResult& result) {
  std::vector<double> rates;
  for (const OfflineRun& run : result.runs) {
    if (run.decode_tokens == 0 || run.decode_seconds <= 0) return {};
    rates.push_back(static_cast<double>(run.decode_tokens) / run.decode_seconds);
  }
  return rates;
}

void AddRates(const std::string& name, const std::vector<double>& rates, Json& json) {
  const Summary summary = Summarize(rates);
  json[name] = rates.empty() ? Json() : Json(Median(rates));
  json[name + "_min"] = rates.empty() ? Json() : Json(summary.min);
  json[name + "_max"] = rates.empty() ? Json() : Json(summary.max);
}

std::string RatesText(const char* name, const std::vector<double>& rates) {
  if (rates.empty()) return fmt::format("{:8} none\n", name);
  const Summary summary = Summarize(rates);
  return fmt::format("{:8} {:10.1f} tokens/s   ({:.1f} to {:.1f})\n", name, Median(rates),
                     summary.min, summary.max);
}

std::string MemoryText(const OfflineResult& result) {
  const auto line = [&result](const char* what, std::optional<int64_t> bytes) {
    if (!bytes) return std::string();
    return fmt::format("memory   {:10.1f} MiB {} ({:.1f} % of weights and KV cache)\n",
                       static_cast<double>(*bytes) / (1 << 20), what,
                       100 * static_cast<double>(*bytes) / static_cast<double>(result.held_bytes));
  };
  return line("weights and KV cache", result.held_bytes) +
         line("anonymous", result.memory.anonymous) +
         line("of it in pages of 2 MiB", result.memory.anonymous_huge) +
         line("at most, mapped files included", result.memory.peak);
}

}  // namespace

absl::StatusOr<std::unique_ptr<OfflineSession>> OfflineSession::Load(
    const worker::exec::ExecutorOptions& executor, const worker::exec::BackendFactory& backend) {
  const SteadyClock clock;
  const TimePoint start = clock.Now();
  worker::comm::LocalHostGroup group;
  ASSIGN_OR_RETURN(
      auto rank, worker::exec::Rank::Create(
                     executor, group, worker::exec::DefaultCommunicator({}, nullptr), {}, backend));
  return std::unique_ptr<OfflineSession>(
      new OfflineSession(executor, std::move(rank), ToSeconds(clock.Now() - start)));
}

OfflineSession::OfflineSession(const worker::exec::ExecutorOptions& executor,
                               std::unique_ptr<worker::exec::Rank> rank, double load_seconds)
    : rank_(std::move(rank)),
      load_seconds_(load_seconds),
      executor_(*rank_),
      engine_({.max_batched_tokens = executor.max_num_batched_tokens,
               .max_queue = executor.max_num_seqs,
               .prefix_caching = false},
              executor_, group_, clock_) {}

int32_t OfflineSession::LargestBatch(int32_t prompt_length, int32_t output_length) const {
  const worker::exec::ExecutorLimits& limits = rank_->limits();
  const int64_t positions = int64_t{prompt_length} + output_length;
  if (positions > limits.max_model_len) return 0;
  int32_t fits = 0, too_many = limits.slots + 1;
  while (too_many - fits > 1) {
    const int32_t middle = fits + (too_many - fits) / 2;
    (BlocksOf(middle, positions) <= limits.blocks ? fits : too_many) = middle;
  }
  return fits;
}

absl::StatusOr<OfflineRun> OfflineSession::RunBatch(const OfflineOptions& options,
                                                    int32_t prompt_length, int32_t output_length) {
  const int64_t preemptions = engine_.Stats().preemptions;
  const int64_t first_prompt = std::exchange(next_prompt_, next_prompt_ + options.batch);
  ASSIGN_OR_RETURN(const OfflineRun run,
                   Batch(engine_, clock_)
                       .Run(options, first_prompt, prompt_length, output_length,
                            rank_->description().config.vocab_size));
  if (engine_.Stats().preemptions > preemptions)
    return absl::InternalError("sequences were preempted: the numbers would mislead");
  return run;
}

absl::Status OfflineSession::WarmUp(const OfflineOptions& options) {
  RETURN_IF_ERROR(CheckFits(options, rank_->limits()));
  return RunBatch(options, std::min(kWarmUpPrompt, options.prompt_length),
                  std::min(kWarmUpOutput, options.output_length))
      .status();
}

absl::StatusOr<OfflineRun> OfflineSession::Run(const OfflineOptions& options) {
  RETURN_IF_ERROR(CheckFits(options, rank_->limits()));
  return RunBatch(options, options.prompt_length, options.output_length);
}

absl::StatusOr<OfflineResult> RunOffline(const OfflineOptions& options) {
  worker::exec::ExecutorOptions executor = options.executor;
  executor.max_num_seqs = options.batch;
  Profile profile;
  worker::exec::BackendFactory backend = kernels::CreateBackend;
  if (options.profile) backend = ProfiledBackend(profile, backend);
  ASSIGN_OR_RETURN(const auto session, OfflineSession::Load(executor, backend));
  RETURN_IF_ERROR(session->WarmUp(options));
  profile.Take();
  OfflineResult result;
  result.load_seconds = session->load_seconds();
  result.model = DescribeModel(options, session->rank());
  for (int32_t i = 0; i < options.repeat; ++i) {
    ASSIGN_OR_RETURN(const OfflineRun run, session->Run(options));
    result.runs.push_back(run);
  }
  const worker::exec::ExecutorLimits& limits = session->rank().limits();
  result.held_bytes = session->rank().description().weight_bytes +
                      limits.kv_bytes_per_token * kBlockTokens * limits.blocks;
  result.memory = ReadProcessMemory();
  result.profile = Tabulate(profile.Take(), options.batch);
  result.loading = profile.loading();
  return result;
}

Json ToJson(const OfflineOptions& options, const OfflineResult& result) {
  Json json = {{"benchmark", "offline"},
               {"batch", options.batch},
               {"prompt_length", options.prompt_length},
               {"output_length", options.output_length},
               {"repeat", options.repeat}};
  AddRates("prefill_tokens_per_second", PrefillRates(options, result), json);
  AddRates("decode_tokens_per_second", DecodeRates(result), json);
  json["load_seconds"] = result.load_seconds;
  json["model"] = result.model;
  json["memory"] = ToJson(result.memory);
  json["memory"]["weights_and_kv_bytes"] = result.held_bytes;
  if (options.profile) json["profile"] = ToJson(result.profile, result.loading);
  for (const OfflineRun& run : result.runs) {
    json["runs"].push_back({{"prefill_seconds", run.prefill_seconds},
                            {"decode_seconds", run.decode_seconds},
                            {"decode_tokens", run.decode_tokens},
                            {"early_tokens", run.early_tokens},
                            {"steps", run.steps}});
  }
  return json;
}

std::string ToText(const OfflineOptions& options, const OfflineResult& result) {
  return fmt::format("{} sequences, {} prompt and {} output tokens each, {} runs: median (range)\n",
                     options.batch, options.prompt_length, options.output_length, options.repeat) +
         RatesText("prefill", PrefillRates(options, result)) +
         RatesText("decode", DecodeRates(result)) + MemoryText(result) +
         (options.profile ? ToText(result.profile, result.loading) : "");
}

}  // namespace qserve::bench
