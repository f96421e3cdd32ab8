// Tensor parallelism on the demo model, ranks as threads: equal greedy tokens in full precision,
// determinism within a degree in W4A8, and groups that disagree end instead of going on.
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/model_driver.h"
#include "tests/integration/model_fixture.h"
#include "worker/comm/local_host_group.h"
#include "worker/comm/thread_communicator.h"
#include "worker/comm/thread_host_group.h"
#include "worker/exec/follower.h"
#include "worker/exec/model_executor.h"

namespace qserve::tests {
namespace {

using ::testing::HasSubstr;
using worker::checkpoint::LoadQuantization;
using worker::comm::Communicator;
using worker::comm::ThreadCommunicator;
using worker::comm::ThreadHostGroup;
using worker::exec::ExecutorOptions;
using worker::exec::ModelExecutor;
using worker::exec::Rank;

ExecutorOptions Options(int size, LoadQuantization quantization) {
  ExecutorOptions options;
  options.model_dir = "deploy/demo-model";
  options.device = "cpu";
  options.threads = 1;
  options.tensor_parallel_size = size;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 512;
  options.max_model_len = 256;
  options.kv_cache_memory = int64_t{64} << 20;
  options.quantize = quantization;
  if (quantization == LoadQuantization::kNone)
    options.kv_cache_dtype = worker::exec::KvCacheType::kFp32;
  return options;
}

std::vector<Request> Requests() {
  std::vector<Request> requests;
  for (const int length : {5, 70, 130}) {
    Request& request = requests.emplace_back();
    for (int i = 0; i < length; ++i) request.prompt.push_back((i * 37 + length) % 4096);
    request.sampling.temperature = 0;
    request.max_tokens = 12;
  }
  Request seeded = requests[1];
  seeded.sampling.temperature = 1;
  seeded.sampling.seed = 5;
  seeded.sampling.logprobs = 2;
  seeded.sampling.presence_penalty = 0.5f;
  requests.push_back(seeded);
  return requests;
}

struct Outcome {
  absl::StatusOr<std::vector<Drawn>> drawn = absl::UnknownError("not run");
  std::vector<absl::Status> followers;
  std::vector<absl::Status> created;
  std::vector<int64_t> checkpoint_bytes;
};

// Hears another digest than the leader said.
class MishearingGroup final : public worker::comm::HostGroup {
 public:
  explicit MishearingGroup(worker::comm::HostGroup& inner) : inner_(inner) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  absl::Status Broadcast(const std::string& bytes) override { return inner_.Broadcast(bytes); }
  absl::StatusOr<std::string> ReceiveBroadcast() override {
    ASSIGN_OR_RETURN(const std::string bytes, inner_.ReceiveBroadcast());
    ASSIGN_OR_RETURN(plan::StepPlan heard, plan::Decode(bytes));
    heard.committed_digest ^= 1;
    return plan::Encode(heard);
  }
  absl::StatusOr<std::vector<std::string>> Gather(const std::string& bytes) override {
    return inner_.Gather(bytes);
  }
  absl::Status Barrier() override { return inner_.Barrier(); }
  void Abort() override { inner_.Abort(); }

 private:
  worker::comm::HostGroup& inner_;
};

// A whole group: rank 0 drives, the others follow. `change` may spoil one rank's options,
// `digest_error` the leader's plans.
Outcome RunGroup(const ExecutorOptions& base, const Schedule& schedule, uint64_t digest_error = 0,
                 bool mishear = false,
                 const std::function<void(int rank, ExecutorOptions&)>& change = {}) {
  const int size = base.tensor_parallel_size;
  worker::comm::ThreadHub hub(size);
  worker::comm::ThreadHostHub host_hub(size);
  Outcome outcome;
  outcome.followers.resize(static_cast<size_t>(size));
  outcome.created.resize(static_cast<size_t>(size));
  outcome.checkpoint_bytes.resize(static_cast<size_t>(size));
  OnRanks(size, [&](int index) {
    ThreadHostGroup group(&host_hub, index);
    ExecutorOptions options = base;
    options.rank = index;
    if (change) change(index, options);
    auto rank = Rank::Create(
        options, group,
        [&](kernels::Backend& backend) -> absl::StatusOr<std::unique_ptr<Communicator>> {
          return std::make_unique<ThreadCommunicator>(&hub, index, &backend);
        });
    outcome.created[static_cast<size_t>(index)] = rank.status();
    if (!rank.ok()) return;
    outcome.checkpoint_bytes[static_cast<size_t>(index)] = (*rank)->description().checkpoint_bytes;
    ModelExecutor executor(**rank, [&group] { group.Abort(); });
    if (index != 0) {
      MishearingGroup mishearing(group);
      outcome.followers[static_cast<size_t>(index)] =
          mishear ? worker::exec::RunFollower(mishearing, executor)
                  : worker::exec::RunFollower(group, executor);
      return;
    }
    BroadcastingExecutor leader(executor, group);
    Driver driver(leader, schedule);
    driver.digest_error = digest_error;
    outcome.drawn = driver.Run(Requests());
    plan::StepPlan bye;
    bye.shutdown = true;
    const bool told = !outcome.drawn.ok() || group.Broadcast(plan::Encode(bye)).ok();
    EXPECT_TRUE(told);
  });
  return outcome;
}

std::vector<std::vector<int32_t>> Ids(const std::vector<Drawn>& drawn) {
  std::vector<std::vector<int32_t>> ids;
  for (const Drawn& one : drawn) {
    ids.emplace_back();
    for (const plan::SampledToken& token : one) ids.back().push_back(token.id);
  }
  return ids;
}

TEST(ModelParallel, FullPrecisionGivesEqualTokensAtEveryDegree) {
  std::vector<std::vector<int32_t>> alone;
  for (const int size : {1, 2, 4}) {
    const Outcome outcome = RunGroup(Options(size, LoadQuantization::kNone), {.budget = 100});
    ASSERT_TRUE(outcome.drawn.ok()) << outcome.drawn.status();
    for (const absl::Status& status : outcome.followers) EXPECT_TRUE(status.ok()) << status;
    if (size == 1) alone = Ids(*outcome.drawn);
    EXPECT_EQ(Ids(*outcome.drawn), alone) << size << " ranks";
    EXPECT_EQ(alone[0].size(), 12u);
  }
}

TEST(ModelParallel, QuantizedTokensDependOnTheDegreeAlone) {
  for (const LoadQuantization scheme :
       {LoadQuantization::kRtnGroup128, LoadQuantization::kRtnPerChannel}) {
    for (const int size : {2, 4}) {
      const Outcome whole = RunGroup(Options(size, scheme), {});
      const Outcome chunked = RunGroup(Options(size, scheme), {.budget = 33, .pipelined = true});
      const Outcome preempted =
          RunGroup(Options(size, scheme), {.budget = 64, .preempt_before = {3, 8}});
      ASSERT_TRUE(whole.drawn.ok()) << whole.drawn.status();
      ASSERT_TRUE(chunked.drawn.ok()) << chunked.drawn.status();
      ASSERT_TRUE(preempted.drawn.ok()) << preempted.drawn.status();
      EXPECT_EQ(*chunked.drawn, *whole.drawn) << size << " ranks";
      EXPECT_EQ(*preempted.drawn, *whole.drawn) << size << " ranks";
      for (const absl::Status& status : chunked.followers) EXPECT_TRUE(status.ok()) << status;
    }
  }
}

TEST(ModelParallel, EachRankReadsItsSharesOnly) {
  const Outcome one = RunGroup(Options(1, LoadQuantization::kNone), {});
  const Outcome four = RunGroup(Options(4, LoadQuantization::kNone), {});
  const int64_t whole = one.checkpoint_bytes[0];
  EXPECT_GT(whole, 10'000'000);
  for (const int64_t bytes : four.checkpoint_bytes) {
    EXPECT_GT(bytes, whole / 4);
    EXPECT_LT(bytes, whole * 28 / 100);  // two kv heads on four ranks: each is read twice
  }
}

TEST(ModelParallel, OtherCommittedTokensEndTheGroup) {
  const Outcome outcome =
      RunGroup(Options(2, LoadQuantization::kRtnGroup128), {.budget = 64}, /*digest_error=*/1);
  // Whichever rank sees it first ends the group; the other may learn of that before it sees it too.
  const absl::Status statuses[] = {outcome.drawn.status(), outcome.followers[1]};
  int saw_it = 0;
  for (const absl::Status& status : statuses) {
    EXPECT_FALSE(status.ok());
    if (absl::IsDataLoss(status)) {
      ++saw_it;
      EXPECT_THAT(std::string(status.message()), HasSubstr("rank "));
    } else {
      EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsCancelled(status)) << status;
    }
  }
  EXPECT_GE(saw_it, 1);
}

TEST(ModelParallel, OneRankThatDisagreesEndsTheOthersInTheMiddleOfTheirStep) {
  const Outcome outcome = RunGroup(Options(2, LoadQuantization::kRtnGroup128), {.budget = 64},
                                   /*digest_error=*/0, /*mishear=*/true);
  EXPECT_EQ(outcome.followers[1].code(), absl::StatusCode::kDataLoss) << outcome.followers[1];
  EXPECT_FALSE(outcome.drawn.ok());
}

TEST(ModelParallel, DifferentOptionsAreRefusedOnEveryRank) {
  const Outcome outcome = RunGroup(Options(2, LoadQuantization::kNone), {}, 0, false,
                                   [](int rank, ExecutorOptions& options) {
                                     if (rank == 1) options.max_num_seqs = 9;
                                   });
  for (const absl::Status& status : outcome.created) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  }
}

TEST(ModelParallel, DegreesThatDoNotCutTheModelAreRefused) {
  const Outcome outcome = RunGroup(Options(3, LoadQuantization::kNone), {});
  for (const absl::Status& status : outcome.created) EXPECT_FALSE(status.ok());
  EXPECT_TRUE(
      std::any_of(outcome.created.begin(), outcome.created.end(), [](const absl::Status& status) {
        return std::string(status.message()).find("legal sizes: 1, 2, 4") != std::string::npos;
      }));
}

}  // namespace
}  // namespace qserve::tests
