#include "worker/exec/model_executor.h"

#include <utility>

#include <fmt/format.h>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/model/device_status.h"

namespace qserve::worker::exec {
namespace {

// A leader commits a step before it plans the one after the next: more are never asked for.
constexpr size_t kRememberedSteps = 2 * kMaxStepsInFlight;

}  // namespace

ModelExecutor::ModelExecutor(Rank& rank, std::function<void()> on_failure)
    : rank_(rank),
      on_failure_(std::move(on_failure)),
      slots_(rank.limits(), static_cast<int32_t>(rank.description().config.vocab_size)),
      thread_([this] { Loop(); }) {}

ModelExecutor::~ModelExecutor() {
  bool abandoned = false;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    abandoned = running_ || !waiting_.empty();
    waiting_.clear();
  }
  changed_.notify_all();
  if (abandoned) rank_.communicator().Abort();  // the other ranks may never come
  thread_.join();
}

absl::Status ModelExecutor::Enqueue(const plan::StepPlan& plan) {
  {
    const std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(failure_);
    if (in_flight_.size() >= kMaxStepsInFlight) {
      return absl::FailedPreconditionError(
          fmt::format("{} steps are in flight", kMaxStepsInFlight));
    }
    in_flight_.push_back(plan.step);
    waiting_.push_back(plan);
  }
  changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<plan::StepResult> ModelExecutor::Await(plan::StepId step) {
  std::unique_lock lock(mutex_);
  if (in_flight_.empty() || in_flight_.front() != step) {
    RETURN_IF_ERROR(failure_);
    return absl::FailedPreconditionError(
        fmt::format("step {} is not the oldest in flight", step.value()));
  }
  changed_.wait(lock, [this] { return !finished_.empty() || !failure_.ok(); });
  if (finished_.empty()) return failure_;
  plan::StepResult result = std::move(finished_.front());
  finished_.pop_front();
  in_flight_.pop_front();
  return result;
}

void ModelExecutor::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closed_ || !waiting_.empty(); });
    if (closed_) return;
    const plan::StepPlan plan = std::move(waiting_.front());
    waiting_.pop_front();
    running_ = true;
    lock.unlock();
    absl::StatusOr<plan::StepResult> result = RunStep(plan);
    lock.lock();
    running_ = false;
    if (result.ok()) {
      finished_.push_back(*std::move(result));
    } else {
      failure_ = result.status();
      waiting_.clear();
    }
    changed_.notify_all();
    if (!failure_.ok()) {
      lock.unlock();
      rank_.communicator().Abort();  // other ranks may be in the middle of the step
      if (on_failure_) on_failure_();
      return;
    }
  }
}

absl::StatusOr<plan::StepResult> ModelExecutor::RunStep(const plan::StepPlan& plan) {
  if (last_step_ && plan.step <= *last_step_) {
    return absl::InvalidArgumentError(
        fmt::format("plan: step {} after step {}", plan.step.value(), last_step_->value()));
  }
  RETURN_IF_ERROR(CheckCommitted(plan));
  ASSIGN_OR_RETURN(const StepBatch batch, slots_.Apply(plan));
  std::vector<kernels::SampledToken> sampled;
  RETURN_IF_ERROR(model::ToAbsl(rank_.backend().Run(0, [&] {
    rank_.model().Forward({.token_ids = batch.token_ids,
                           .sequences = batch.sequences,
                           .logit_rows = batch.logit_rows,
                           .sampling = batch.sampling},
                          rank_.kv_cache().layers(), &sampled);
  })));
  ASSIGN_OR_RETURN(plan::StepResult result, ResultOf(plan, batch, sampled));
  slots_.Record(result);
  last_step_ = plan.step;
  drawn_.push_back({plan.step, plan::DigestTokens(result)});
  if (drawn_.size() > kRememberedSteps) drawn_.pop_front();
  return result;
}

// The leader tells with every plan which tokens it went on from. A rank that computed others must
// not go on.
absl::Status ModelExecutor::CheckCommitted(const plan::StepPlan& plan) const {
  for (const Drawn& drawn : drawn_) {
    if (drawn.step != plan.committed_step) continue;
    if (drawn.digest == plan.committed_digest) return absl::OkStatus();
    return absl::DataLossError(
        fmt::format("rank {} drew other tokens in step {} than the leader committed", rank_.rank(),
                    drawn.step.value()));
  }
  // A group that has not committed yet names a step from before its first.
  if (drawn_.empty() || plan.committed_step < drawn_.front().step) return absl::OkStatus();
  return absl::DataLossError(fmt::format("step {} is committed, but rank {} did not run it",
                                         plan.committed_step.value(), rank_.rank()));
}

absl::StatusOr<plan::StepResult> ModelExecutor::ResultOf(
    const plan::StepPlan& plan, const StepBatch& batch,
    const std::vector<kernels::SampledToken>& sampled) {
  plan::StepResult result{.step = plan.step, .tokens = {}};
  if (rank_.rank() == 0) {
    for (const kernels::SampledToken& from : sampled) {
      plan::SampledToken& to = result.tokens.emplace_back();
      to.slot = plan::SlotId(from.slot);
      to.id = from.id;
      to.logprob = from.logprob;
      for (const kernels::TokenLogprob& top : from.top) to.top.push_back({top.id, top.logprob});
    }
    QSERVE_CHECK(result.tokens.size() == batch.sampling.size());
    return result;
  }
  if (batch.sampling.empty()) return result;
  std::vector<int32_t> ids(static_cast<size_t>(limits().slots));
  rank_.backend().CopyToHost(ids.data(), rank_.model().sampled_ids(),
                             std::ssize(ids) * int64_t{sizeof(int32_t)});
  for (const kernels::SampleRow& row : batch.sampling) {
    plan::SampledToken& to = result.tokens.emplace_back();
    to.slot = plan::SlotId(row.slot);
    to.id = ids[static_cast<size_t>(row.slot)];
  }
  return result;
}

}  // namespace qserve::worker::exec
