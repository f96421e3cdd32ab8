#include "worker/serve/status_board.h"

#include <memory>
#include <utility>

#include "common/entropy.h"

namespace qserve::worker::serve {
namespace {

constexpr auto kSampleInterval = std::chrono::milliseconds(50);

}  // namespace

StatusBoard::StatusBoard(const ServedModel& model, engine::Engine& engine, const Clock& clock,
                         Metrics& metrics,
                         std::function<void(const v1::WatchStatusResponse&)> on_sample)
    : model_(model),
      engine_(engine),
      clock_(clock),
      epoch_(DrawId()),
      start_(clock.Now()),
      on_sample_(std::move(on_sample)) {
  RegisterMetrics(metrics);
  current_ = Sample();
  thread_ = std::thread([this] { Work(); });
}

StatusBoard::~StatusBoard() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

v1::WatchStatusResponse StatusBoard::Current() const {
  const std::lock_guard lock(mutex_);
  return current_;
}

void StatusBoard::Poke() {
  {
    const std::lock_guard lock(mutex_);
    poked_ = true;
  }
  wake_.notify_all();
}

void StatusBoard::Work() {
  while (true) {
    v1::WatchStatusResponse status = Sample();
    {
      std::unique_lock lock(mutex_);
      current_ = status;
      poked_ = false;
      lock.unlock();
      on_sample_(status);
      lock.lock();
      wake_.wait_for(lock, kSampleInterval, [this] { return stopping_ || poked_; });
      if (stopping_) return;
    }
  }
}

v1::WatchStatusResponse StatusBoard::Sample() {
  const engine::EngineStats stats = engine_.Stats();
  const TimePoint now = clock_.Now();
  const bool has_work = stats.running + stats.waiting > 0;
  if (!has_work) {
    busy_since_ = TimePoint{};
  } else if (busy_since_ == TimePoint{}) {
    busy_since_ = now;
  }
  const TimePoint last_sign = std::max(stats.last_step, busy_since_);
  v1::WatchStatusResponse status;
  status.set_epoch(epoch_);
  status.add_models(model_.name);
  status.set_numerics_id(model_.numerics_id);
  status.set_running(stats.running);
  status.set_waiting(stats.waiting);
  status.set_queued_tokens(stats.queued_tokens);
  status.set_kv_blocks_total(stats.kv_blocks_total);
  status.set_kv_blocks_used(stats.kv_blocks_used);
  status.set_draining(stats.draining);
  status.set_making_progress(stats.healthy && (!has_work || now - last_sign < kProgressTimeout));
  status.set_steps(stats.steps);
  status.set_generated_tokens(stats.generated_tokens);
  status.set_max_model_len(model_.max_model_len);
  status.set_tensor_parallel_size(model_.tensor_parallel_size);
  status.mutable_uptime()->set_seconds(
      std::chrono::duration_cast<std::chrono::seconds>(now - start_).count());
  return status;
}

void StatusBoard::RegisterMetrics(Metrics& metrics) {
  struct Family {
    const char* name;
    const char* help;
    double (*value)(const engine::EngineStats&);
    bool counter;
  };
  static constexpr Family kFamilies[] = {
      {"qserve_requests_running", "Sequences being generated",
       [](const engine::EngineStats& s) { return double(s.running); }, false},
      {"qserve_requests_waiting", "Requests that have not started",
       [](const engine::EngineStats& s) { return double(s.waiting); }, false},
      {"qserve_queued_tokens", "Prompt tokens not yet computed",
       [](const engine::EngineStats& s) { return double(s.queued_tokens); }, false},
      {"qserve_kv_cache_blocks", "KV blocks in all",
       [](const engine::EngineStats& s) { return double(s.kv_blocks_total); }, false},
      {"qserve_kv_cache_used_blocks", "KV blocks held by sequences",
       [](const engine::EngineStats& s) { return double(s.kv_blocks_used); }, false},
      {"qserve_kv_cache_utilization", "Used KV blocks over all",
       [](const engine::EngineStats& s) {
         return s.kv_blocks_total == 0 ? 0 : double(s.kv_blocks_used) / double(s.kv_blocks_total);
       },
       false},
      {"qserve_steps_total", "Steps run",
       [](const engine::EngineStats& s) { return double(s.steps); }, true},
      {"qserve_prompt_tokens_total", "Prompt tokens accepted",
       [](const engine::EngineStats& s) { return double(s.prompt_tokens); }, true},
      {"qserve_prompt_cached_tokens_total", "Of those, found in the prefix cache",
       [](const engine::EngineStats& s) { return double(s.cached_prompt_tokens); }, true},
      {"qserve_generation_tokens_total", "Tokens generated",
       [](const engine::EngineStats& s) { return double(s.generated_tokens); }, true},
      {"qserve_preemptions_total", "Sequences set back to be computed again",
       [](const engine::EngineStats& s) { return double(s.preemptions); }, true},
  };
  for (const Family& family : kFamilies) {
    if (family.counter) {
      prometheus::Counter& counter = metrics.AddCounter(family.name, family.help);
      metrics.OnCollect([this, &counter, value = family.value] {
        counter.Increment(std::max(0.0, value(engine_.Stats()) - counter.Value()));
      });
    } else {
      prometheus::Gauge& gauge = metrics.AddGauge(family.name, family.help);
      metrics.OnCollect(
          [this, &gauge, value = family.value] { gauge.Set(value(engine_.Stats())); });
    }
  }
  prometheus::Gauge& progress = metrics.AddGauge(
      "qserve_making_progress", "1 while the last step finished recently or there is no work");
  metrics.OnCollect([this, &progress] { progress.Set(Current().making_progress() ? 1 : 0); });
}

}  // namespace qserve::worker::serve
