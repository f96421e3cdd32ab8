// A replica in the test process: a real gRPC server over a real engine whose steps are hashes, and
// pass only as far as the test lets them. That gate is what edge and router tests use where others
// sleep. Made and destroyed on the test's thread; the engine has a thread of its own.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include <fmt/format.h>

#include "common/clock.h"
#include "common/metrics/metrics.h"
#include "tests/fakes/fake_executor.h"
#include "worker/comm/local_host_group.h"
#include "worker/engine/engine.h"
#include "worker/serve/server.h"

namespace qserve::integration {

inline constexpr std::chrono::seconds kPatience(60);

inline bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

// Lets steps through. Open at first.
class Gate {
 public:
  void Open() { Set(-1); }
  void Close() { Set(0); }
  // That many more.
  void Let(int64_t steps) {
    {
      const std::lock_guard lock(mutex_);
      if (allowed_ >= 0) allowed_ += steps;
    }
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return allowed_ != 0; });
    if (allowed_ > 0) --allowed_;
  }

 private:
  void Set(int64_t allowed) {
    {
      const std::lock_guard lock(mutex_);
      allowed_ = allowed;
    }
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t allowed_ = -1;  // negative: no limit
};

class GatedExecutor final : public worker::exec::StepExecutor {
 public:
  GatedExecutor(const fakes::FakeExecutorOptions& options, Gate& gate)
      : executor_(options), gate_(gate) {}
  const worker::exec::ExecutorLimits& limits() const override { return executor_.limits(); }
  absl::Status Enqueue(const worker::plan::StepPlan& plan) override {
    return executor_.Enqueue(plan);
  }
  absl::StatusOr<worker::plan::StepResult> Await(worker::plan::StepId step) override {
    gate_.Pass();
    return executor_.Await(step);
  }

 private:
  fakes::FakeExecutor executor_;
  Gate& gate_;
};

struct ReplicaOptions {
  fakes::FakeExecutorOptions executor{.limits = {.slots = 16,
                                                 .blocks = 512,
                                                 .max_step_tokens = 8192,
                                                 .max_model_len = 4096,
                                                 .kv_bytes_per_token = 1}};
  worker::engine::EngineOptions engine;
  std::string numerics_id = "numerics-a";
  bool fake_clock = false;  // deadlines pass when the test says so
};

class TestReplica {
 public:
  explicit TestReplica(const ReplicaOptions& options = {})
      : executor_(options.executor, gate_),
        fake_clock_(options.fake_clock),
        engine_(options.engine, executor_, group_, clock()) {
    model_.name = "demo";
    model_.architecture = "LlamaForCausalLM";
    model_.quantization = "w4a8kv4-g128";
    model_.numerics_id = options.numerics_id;
    model_.max_model_len = options.executor.limits.max_model_len;
    model_.vocab_size = 4096;
    model_.eos_token_ids = {1, 3};
    model_.tokenizer = *worker::text::Tokenizer::Load("deploy/demo-model");
    model_.chat_template = *worker::text::ChatTemplate::Load("deploy/demo-model");
    thread_ = std::thread([this] { failed_ = !engine_.Run().ok(); });
    auto server = worker::serve::Server::Start("127.0.0.1:0", model_, engine_, clock(), metrics_);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  // After whatever a test did: the books must balance.
  ~TestReplica() {
    gate_.Open();
    engine_.Stop();
    thread_.join();
    server_->Shutdown(std::chrono::seconds(1));
    server_.reset();
    const absl::Status invariants = engine_.CheckInvariants();
    EXPECT_TRUE(failed_ || invariants.ok()) << invariants;
    EXPECT_TRUE(engine_.Idle());
    EXPECT_EQ(engine_.Stats().kv_blocks_used, 0);
  }
  TestReplica(const TestReplica&) = delete;
  TestReplica& operator=(const TestReplica&) = delete;

  std::string address() const { return fmt::format("127.0.0.1:{}", server_->port()); }
  int port() const { return server_->port(); }
  Gate& gate() { return gate_; }
  FakeClock& fake_clock() { return fake_time_; }
  worker::engine::Engine& engine() { return engine_; }
  worker::serve::Server& server() { return *server_; }
  const worker::text::Tokenizer& tokenizer() const { return *model_.tokenizer; }
  Metrics& metrics() { return metrics_; }

  bool AtRest() const {
    const worker::engine::EngineStats stats = engine_.Stats();
    return server_->Idle() && stats.running == 0 && stats.waiting == 0 &&
           stats.queued_tokens == 0 && stats.kv_blocks_used == 0;
  }
  // Nothing is open, running, waiting or held any more.
  bool ComesToRest() const {
    return Eventually([this] { return AtRest(); });
  }
  bool WaitsForRunning(int64_t sequences) const {
    return Eventually([this, sequences] { return engine_.Stats().running == sequences; });
  }
  bool WaitsForWaiting(int64_t requests) const {
    return Eventually([this, requests] { return engine_.Stats().waiting == requests; });
  }

 private:
  const Clock& clock() const {
    return fake_clock_ ? static_cast<const Clock&>(fake_time_) : steady_time_;
  }

  Gate gate_;
  GatedExecutor executor_;
  worker::comm::LocalHostGroup group_;
  const bool fake_clock_;
  FakeClock fake_time_;
  SteadyClock steady_time_;
  Metrics metrics_;
  worker::serve::ServedModel model_;
  worker::engine::Engine engine_;
  std::thread thread_;
  bool failed_ = false;  // engine thread until it has been joined
  std::unique_ptr<worker::serve::Server> server_;
};

}  // namespace qserve::integration
