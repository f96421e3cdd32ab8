// The engine's turn: inbox, plan, broadcast, enqueue, await, commit, deliver. Everything here runs
// on the engine thread, but for Submit, Cancel, Stats and the small ones, which touch only the
// inbox, the copy of the statistics and constants.
#include "worker/engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/engine/inbox.h"
#include "worker/engine/token_channel.h"
#include "worker/plan/step_plan.h"
#include "worker/sched/scheduler.h"

namespace qserve::worker::engine {
namespace {

static_assert(sched::Scheduler::kMaxInFlight == exec::kMaxStepsInFlight);

sched::SchedulerOptions ToSchedulerOptions(const EngineOptions& options,
                                           const exec::ExecutorLimits& limits) {
  return {.slots = limits.slots,
          .blocks = limits.blocks,
          .max_step_tokens = std::min(options.max_batched_tokens, limits.max_step_tokens),
          .max_model_len = limits.max_model_len,
          .prefix_caching = options.prefix_caching};
}

Submission ToSubmission(EngineRequest request) {
  return {.request = {.id = request.id,
                      .prompt = std::move(request.prompt),
                      .sampling = std::move(request.sampling),
                      .stop_ids = std::move(request.stop_ids),
                      .max_tokens = request.max_tokens,
                      .candidates = request.candidates,
                      .priority = request.priority,
                      .cache_salt = request.cache_salt,
                      .use_prefix_cache = request.use_prefix_cache,
                      .arrival = request.arrival,
                      .deadline = request.deadline,
                      .queue_deadline = request.queue_deadline,
                      .resume = std::move(request.resume)},
          .channel = std::move(request.channel)};
}

}  // namespace

struct Engine::Impl {
  Impl(const EngineOptions& engine_options, exec::StepExecutor& step_executor,
       comm::HostGroup& host_group, const Clock& engine_clock)
      : scheduler_options(ToSchedulerOptions(engine_options, step_executor.limits())),
        pipeline_depth(engine_options.pipeline_depth),
        executor(step_executor),
        group(host_group),
        clock(engine_clock),
        inbox(engine_options.max_queue),
        scheduler(scheduler_options) {
    QSERVE_CHECK(pipeline_depth >= 1 && pipeline_depth <= exec::kMaxStepsInFlight);
    published.kv_blocks_total = scheduler_options.blocks;
  }

  // An open request on its way to the edge.
  struct Outlet {
    std::shared_ptr<TokenChannel> channel;
    int32_t live = 0;  // candidates whose last event has not been delivered
  };

  bool DrainInbox();
  void Admit(Submission submission, TimePoint now);
  absl::StatusOr<bool> Turn();
  absl::Status CommitOldest();
  bool Deliver(const absl::Status& error = absl::OkStatus());
  void EndAll(const absl::Status& error);
  void Fail(const absl::Status& status);
  void Publish();

  const sched::SchedulerOptions scheduler_options;
  const int32_t pipeline_depth;
  exec::StepExecutor& executor;
  comm::HostGroup& group;
  const Clock& clock;

  Inbox inbox;
  std::atomic<int64_t> next_request_id{1};

  // Engine thread.
  sched::Scheduler scheduler;
  absl::flat_hash_map<RequestId, Outlet> outlets;
  Inbox::Batch batch;
  plan::StepPlan step_plan;
  std::vector<TokenEvent> events;
  absl::Status failure;
  TimePoint last_step{};

  mutable std::mutex stats_mutex;
  EngineStats published;  // guarded by stats_mutex
};

bool Engine::Impl::DrainInbox() {
  inbox.Drain(batch);
  const TimePoint now = clock.Now();
  for (Submission& submission : batch.submissions) Admit(std::move(submission), now);
  for (const auto& [key, reason] : batch.cancellations) {
    scheduler.Cancel(key.first, key.second, reason, now);
  }
  return !batch.submissions.empty() || !batch.cancellations.empty();
}

void Engine::Impl::Admit(Submission submission, TimePoint now) {
  const RequestId id = submission.request.id;
  const std::vector<ResumeCandidate>& resume = submission.request.resume;
  const auto finished = std::count_if(resume.begin(), resume.end(),
                                      [](const ResumeCandidate& r) { return r.finished; });
  const int32_t live = submission.request.candidates - static_cast<int32_t>(finished);
  const absl::Status status = scheduler.Submit(std::move(submission.request), now);
  if (status.ok()) {
    outlets[id] = {.channel = std::move(submission.channel), .live = live};
    return;
  }
  // Only an id used again too early: everything else was checked before it came here.
  TokenEvent event;
  event.request = id;
  event.finish = FinishReason::kCancelled;
  event.error = status;
  submission.channel->Push(std::move(event));
  inbox.Ended(id);
}

// Hands out what the scheduler has to say. With an error, the last event of each candidate bears
// it.
bool Engine::Impl::Deliver(const absl::Status& error) {
  scheduler.TakeEvents(events);
  for (TokenEvent& event : events) {
    const auto found = outlets.find(event.request);
    QSERVE_CHECK(found != outlets.end());
    Outlet& outlet = found->second;
    const bool last = event.finish != FinishReason::kNone;
    if (last) event.error = error;
    outlet.channel->Push(std::move(event));
    if (!last || --outlet.live > 0) continue;
    const RequestId id = found->first;
    outlets.erase(found);
    inbox.Ended(id);
  }
  return !events.empty();
}

absl::Status Engine::Impl::CommitOldest() {
  ASSIGN_OR_RETURN(plan::StepResult result, executor.Await(scheduler.oldest_in_flight()));
  last_step = clock.Now();
  return scheduler.Commit(std::move(result), last_step);
}

absl::StatusOr<bool> Engine::Impl::Turn() {
  bool worked = DrainInbox();
  bool planned = false;
  if (scheduler.steps_in_flight() < pipeline_depth) {
    scheduler.Plan(clock.Now(), step_plan);
    planned = !step_plan.empty();
  }
  if (planned) {
    if (group.size() > 1) RETURN_IF_ERROR(group.Broadcast(plan::Encode(step_plan)));
    RETURN_IF_ERROR(executor.Enqueue(step_plan));
  }
  // A step was added and there is room for another: fill the pipeline before waiting.
  const bool fill = planned && scheduler.steps_in_flight() < pipeline_depth;
  const bool awaits = !fill && scheduler.steps_in_flight() > 0;
  if (awaits) RETURN_IF_ERROR(CommitOldest());
  worked |= Deliver() || planned || awaits;
  if (!worked && !scheduler.idle()) {
    return absl::InternalError("requests are open, but none of them can be scheduled");
  }
  return worked;
}

// Ends every open request. The inbox is closed first, so that nobody waits for what is never
// drained.
void Engine::Impl::EndAll(const absl::Status& error) {
  inbox.Close();
  DrainInbox();
  scheduler.CancelAll(FinishReason::kCancelled, clock.Now());
  Deliver(error);
}

void Engine::Impl::Fail(const absl::Status& status) {
  LOG_ERROR("the engine has failed: {}", status.ToString());
  failure = status;
  // Events of steps before the failure are good; those that end because of it say so.
  Deliver();
  EndAll(absl::UnavailableError(
      fmt::format("the engine has failed: {}", std::string(status.message()))));
}

void Engine::Impl::Publish() {
  const sched::SchedulerStats stats = scheduler.Stats();
  inbox.SetWaiting(stats.waiting);
  const std::lock_guard lock(stats_mutex);
  published.running = stats.running;
  published.waiting = stats.waiting;
  published.queued_tokens = stats.queued_tokens;
  published.kv_blocks_used = stats.blocks_used;
  published.kv_blocks_cached = stats.blocks_cached;
  published.steps = stats.steps;
  published.prompt_tokens = stats.prompt_tokens;
  published.cached_prompt_tokens = stats.cached_prompt_tokens;
  published.generated_tokens = stats.generated_tokens;
  published.preemptions = stats.preemptions;
  published.preemptions_in_prefill = stats.preemptions_in_prefill;
  published.requests_finished = stats.requests_finished;
  published.rows_dropped = stats.rows_dropped;
  published.last_step = last_step;
  published.healthy = failure.ok();
}

Engine::Engine(EngineOptions options, exec::StepExecutor& executor, comm::HostGroup& group,
               const Clock& clock)
    : impl_(std::make_unique<Impl>(options, executor, group, clock)) {}

Engine::~Engine() = default;

absl::Status Engine::Submit(EngineRequest request) {
  if (request.channel == nullptr) return absl::InvalidArgumentError("a channel is needed");
  Submission submission = ToSubmission(std::move(request));
  RETURN_IF_ERROR(sched::CheckRequest(impl_->scheduler_options, submission.request));
  return impl_->inbox.Submit(std::move(submission));
}

void Engine::Cancel(RequestId id, int32_t candidate, FinishReason reason) {
  if (reason == FinishReason::kNone) reason = FinishReason::kCancelled;
  impl_->inbox.Cancel(id, candidate, reason);
}

RequestId Engine::NextRequestId() { return RequestId(impl_->next_request_id.fetch_add(1)); }

EngineStats Engine::Stats() const {
  EngineStats stats;
  {
    const std::lock_guard lock(impl_->stats_mutex);
    stats = impl_->published;
  }
  stats.waiting += impl_->inbox.queued();
  stats.draining = impl_->inbox.draining();
  return stats;
}

absl::StatusOr<bool> Engine::RunOnce() {
  if (!impl_->failure.ok()) return impl_->failure;
  absl::StatusOr<bool> worked = impl_->Turn();
  if (!worked.ok()) impl_->Fail(worked.status());
  impl_->Publish();
  return worked;
}

absl::Status Engine::Run() {
  while (!impl_->inbox.stopping()) {
    ASSIGN_OR_RETURN(const bool worked, RunOnce());
    if (!worked) impl_->inbox.Wait();
  }
  impl_->EndAll(absl::OkStatus());
  absl::Status status;
  while (status.ok() && impl_->scheduler.steps_in_flight() > 0) status = impl_->CommitOldest();
  if (status.ok() && impl_->group.size() > 1) {
    plan::StepPlan farewell;
    farewell.shutdown = true;
    status = impl_->group.Broadcast(plan::Encode(farewell));
  }
  if (!status.ok()) impl_->Fail(status);
  impl_->Publish();
  return status;
}

void Engine::StartDraining() { impl_->inbox.StartDraining(); }

bool Engine::Idle() const { return impl_->inbox.idle(); }

void Engine::Stop() { impl_->inbox.Stop(); }

absl::Status Engine::CheckInvariants() const { return impl_->scheduler.CheckInvariants(); }

}  // namespace qserve::worker::engine
