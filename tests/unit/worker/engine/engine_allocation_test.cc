// What the engine's thread allocates while it does nothing but decode: nothing for a token.
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "tests/fakes/engine_harness.h"

namespace {

thread_local int64_t allocations = 0;

}  // namespace

// Not inlined, or the compiler sees a free of what another operator new returned.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  void* memory = std::malloc(bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace qserve::fakes {
namespace {

using worker::plan::StepPlan;
using worker::plan::StepResult;

// Draws token 7 for everybody. What it allocates itself is not the engine's.
class ConstantExecutor final : public worker::exec::StepExecutor {
 public:
  const worker::exec::ExecutorLimits& limits() const override { return limits_; }
  absl::Status Enqueue(const StepPlan& plan) override {
    StepResult result{.step = plan.step, .tokens = {}};
    const int64_t before = allocations;
    for (const auto& rows : plan.rows) {
      if (rows.sample) result.tokens.push_back({.slot = rows.slot, .id = 7});
    }
    results_.push_back(std::move(result));
    allocations = before;
    return absl::OkStatus();
  }
  absl::StatusOr<StepResult> Await(worker::plan::StepId) override {
    StepResult result = std::move(results_.front());
    results_.erase(results_.begin());
    return result;
  }

 private:
  const worker::exec::ExecutorLimits limits_ = {.slots = 256,
                                                .blocks = 4096,
                                                .max_step_tokens = 8192,
                                                .max_model_len = 4096,
                                                .kv_bytes_per_token = 1};
  std::vector<StepResult> results_;
};

// Allocations of 40 turns in which `sequences` decode, with readers that take each token at once.
int64_t AllocationsWhileDecoding(int sequences, int prompt_tokens) {
  FakeClock clock;
  ConstantExecutor executor;
  RecordingHostGroup group(1);
  worker::engine::Engine engine({.max_queue = 512}, executor, group, clock);
  std::vector<std::shared_ptr<worker::engine::TokenChannel>> channels;
  for (int i = 0; i < sequences; ++i) {
    auto request = MakeRequest(Prompt(prompt_tokens, i), 1000);
    request.id = engine.NextRequestId();
    request.channel = channels.emplace_back(std::make_shared<worker::engine::TokenChannel>([] {}));
    EXPECT_TRUE(engine.Submit(std::move(request)).ok());
  }
  std::vector<std::vector<worker::engine::TokenEvent>> events(channels.size());
  int64_t tokens = 0, counted = 0;
  constexpr int kWarmUp = 12, kCounted = 40;
  for (int turn = 0; turn < kWarmUp + kCounted; ++turn) {
    const int64_t before = allocations;
    EXPECT_TRUE(engine.RunOnce().value());
    if (turn >= kWarmUp) counted += allocations - before;
    for (size_t i = 0; i < channels.size(); ++i) {
      channels[i]->TakeAll(events[i]);
      if (turn >= kWarmUp) tokens += std::ssize(events[i]);
    }
  }
  EXPECT_EQ(tokens, int64_t{sequences} * kCounted);
  engine.Cancel(worker::engine::RequestId(1), -1, worker::engine::FinishReason::kCancelled);
  return counted;
}

TEST(EngineAllocation, ATokenCostsNone) {
  // No sequence fills a block of 64 tokens: from 2 + 12 to 2 + 52.
  EXPECT_EQ(AllocationsWhileDecoding(1, 2), 0);
  EXPECT_EQ(AllocationsWhileDecoding(256, 2), 0);
}

TEST(EngineAllocation, ABlockCostsAFew) {
  // Every sequence fills one block, from 32 + 12 to 32 + 52, and enters it into the prefix cache.
  EXPECT_LE(AllocationsWhileDecoding(256, 32), 256 * 6);
}

}  // namespace
}  // namespace qserve::fakes
