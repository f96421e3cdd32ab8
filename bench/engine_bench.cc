// What a step costs the engine thread beyond the model: scheduling, the plan's bytes, commit,
// events to their channels and their taking, over an executor that answers at once. Prints JSON
// lines, microseconds a step.
//
//   engine_bench [STEPS]     default 2000 a point
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#include "bench/statistics.h"
#include "bench/workload.h"
#include "common/check.h"
#include "common/clock.h"
#include "worker/comm/local_host_group.h"
#include "worker/engine/engine.h"
#include "worker/engine/token_channel.h"
#include "worker/exec/step_executor.h"

namespace qserve::bench {
namespace {

namespace plan = worker::plan;
using worker::engine::Engine;
using worker::engine::EngineRequest;
using worker::engine::TokenChannel;

constexpr int32_t kPromptTokens = 64;
constexpr int64_t kVocabulary = 32000;

// Every sampling row gets a token at once.
class InstantExecutor final : public worker::exec::StepExecutor {
 public:
  InstantExecutor(int32_t slots, int32_t length)
      : limits_{.slots = slots,
                .blocks = slots * (length / plan::kBlockTokens + 4),
                .max_step_tokens = int64_t{slots} * kPromptTokens,
                .max_model_len = length,
                .kv_bytes_per_token = 1} {}
  const worker::exec::ExecutorLimits& limits() const override { return limits_; }
  absl::Status Enqueue(const plan::StepPlan& plan) override {
    plan::StepResult result{.step = plan.step, .tokens = {}};
    for (const plan::SequenceRows& rows : plan.rows) {
      if (rows.sample) result.tokens.push_back({.slot = rows.slot, .id = 17, .top = {}});
    }
    results_.push_back(std::move(result));
    return absl::OkStatus();
  }
  absl::StatusOr<plan::StepResult> Await(plan::StepId step) override {
    QSERVE_CHECK(!results_.empty() && results_.front().step == step);
    plan::StepResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

 private:
  const worker::exec::ExecutorLimits limits_;
  std::deque<plan::StepResult> results_;
};

// Microseconds of each of `steps` decoding steps of `sequences` sequences.
std::vector<double> Measure(int32_t sequences, int32_t steps) {
  const SteadyClock clock;
  const int32_t length = kPromptTokens + steps + 8;
  InstantExecutor executor(sequences, length);
  worker::comm::LocalHostGroup group;
  Engine engine({.max_batched_tokens = int64_t{sequences} * kPromptTokens,
                 .max_queue = sequences,
                 .prefix_caching = true},
                executor, group, clock);
  std::vector<std::shared_ptr<TokenChannel>> channels;
  for (int32_t i = 0; i < sequences; ++i) {
    EngineRequest request;
    request.id = engine.NextRequestId();
    request.prompt = RandomPrompt(1, i, kPromptTokens, kVocabulary);
    request.max_tokens = steps + 8;
    request.arrival = clock.Now();
    request.channel = std::make_shared<TokenChannel>([] {});
    channels.push_back(request.channel);
    QSERVE_CHECK(engine.Submit(std::move(request)).ok());
  }
  for (int warm_up = 0; warm_up < 4; ++warm_up) QSERVE_CHECK(engine.RunOnce().ok());
  std::vector<double> microseconds;
  for (int32_t step = 0; step < steps; ++step) {
    const TimePoint begin = clock.Now();
    const auto worked = engine.RunOnce();
    QSERVE_CHECK(worked.ok() && *worked);
    for (const auto& channel : channels) channel->TakeAll();
    microseconds.push_back(ToSeconds(clock.Now() - begin) * 1e6);
  }
  QSERVE_CHECK(engine.Stats().preemptions == 0);
  return microseconds;
}

}  // namespace
}  // namespace qserve::bench

int main(int argc, char** argv) {
  const int steps = argc > 1 ? std::atoi(argv[1]) : 2000;
  if (steps < 1) {
    std::fprintf(stderr, "usage: engine_bench [STEPS]\n");
    return EXIT_FAILURE;
  }
  for (const int sequences : {1, 32, 256}) {
    const std::vector<double> microseconds = qserve::bench::Measure(sequences, steps);
    const qserve::bench::Summary summary = qserve::bench::Summarize(microseconds);
    std::printf(
        "{\"benchmark\": \"engine\", \"sequences\": %d, \"steps\": %d, \"median_us\": %.2f, "
        "\"min_us\": %.2f, \"max_us\": %.2f}\n",
        sequences, steps, qserve::bench::Median(microseconds), summary.min, summary.max);
  }
  return EXIT_SUCCESS;
}
