// The demo model on GPUs, end to end: the same tokens in every company, after a restart, with
// recorded steps and without, through NCCL in a group of one, and per degree with ranks that share
// the GPU by way of the host, or have one each and NCCL between them.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cuda_backend.h"
#include "tests/integration/model_driver.h"
#include "tests/integration/model_fixture.h"
#include "worker/comm/host_staged_communicator.h"
#include "worker/comm/local_host_group.h"
#include "worker/comm/memory_store.h"
#include "worker/comm/nccl_communicator.h"
#include "worker/comm/thread_communicator.h"
#include "worker/comm/thread_host_group.h"
#include "worker/exec/follower.h"
#include "worker/exec/model_executor.h"
#include "worker/plan/step_plan.h"

namespace qserve::tests {
namespace {

using worker::checkpoint::LoadQuantization;
using worker::exec::CommunicatorFactory;
using worker::exec::ExecutorOptions;
using worker::exec::ModelExecutor;
using worker::exec::Rank;

ExecutorOptions Options(LoadQuantization quantization) {
  ExecutorOptions options;
  options.model_dir = "deploy/demo-model";
  options.device = "cuda";
  options.threads = 2;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 512;
  options.max_model_len = 512;
  options.kv_cache_memory = int64_t{64} << 20;
  options.quantize = quantization;
  return options;
}

std::vector<Request> Requests() {
  std::vector<Request> requests;
  for (const int length : {1, 5, 70, 130, 270}) {
    Request& request = requests.emplace_back();
    for (int i = 0; i < length; ++i) request.prompt.push_back((i * 37 + length) % 4096);
    request.sampling.temperature = length % 2 == 0 ? 0.0f : 0.9f;
    request.sampling.seed = static_cast<uint64_t>(length);
    request.sampling.logprobs = 2;
    request.max_tokens = 24;
  }
  return requests;
}

std::unique_ptr<Rank> MakeRank(
    const ExecutorOptions& options,
    const CommunicatorFactory& communicator = worker::exec::DefaultCommunicator({}, nullptr)) {
  worker::comm::LocalHostGroup group;
  auto rank = Rank::Create(options, group, communicator);
  EXPECT_TRUE(rank.ok()) << rank.status();
  return rank.ok() ? *std::move(rank) : nullptr;
}

class GpuModel : public ::testing::TestWithParam<LoadQuantization> {
 protected:
  void SetUp() override {
    if (kernels::CudaDeviceCount() == 0) GTEST_SKIP() << "no NVIDIA GPU that CUDA can use is here";
  }
  // Every request on its own.
  static std::vector<Drawn> Alone(Rank& rank) {
    std::vector<Drawn> all;
    for (const Request& request : Requests()) {
      for (Drawn& drawn : Draw(rank, {}, {request})) all.push_back(std::move(drawn));
    }
    return all;
  }
};

TEST_P(GpuModel, TokensAreTheSameInEveryCompanyAndAfterARestart) {
  const ExecutorOptions options = Options(GetParam());
  auto rank = MakeRank(options);
  ASSERT_NE(rank, nullptr);
  const std::vector<Drawn> alone = Alone(*rank);
  ASSERT_EQ(alone.size(), Requests().size());
  for (const int64_t budget : {int64_t{7}, int64_t{64}, int64_t{512}}) {
    EXPECT_EQ(Draw(*rank, {.budget = budget}, Requests()), alone) << "chunks of " << budget;
  }
  EXPECT_EQ(Draw(*rank, {.budget = 64, .pipelined = true}, Requests()), alone);
  rank = nullptr;
  rank = MakeRank(options);
  ASSERT_NE(rank, nullptr);
  EXPECT_EQ(Draw(*rank, {}, Requests()), alone) << "after a restart";
}

TEST_P(GpuModel, RecordedStepsGiveTheTokensOfEagerOnes) {
  ExecutorOptions options = Options(GetParam());
  options.record_steps = false;
  auto rank = MakeRank(options);
  ASSERT_NE(rank, nullptr);
  const std::vector<Drawn> eager = Draw(*rank, {}, Requests());
  options.record_steps = true;
  rank = nullptr;
  rank = MakeRank(options);
  ASSERT_NE(rank, nullptr);
  EXPECT_EQ(Draw(*rank, {}, Requests()), eager);
}

TEST_P(GpuModel, NcclInAGroupOfOneChangesNothing) {
  auto rank = MakeRank(Options(GetParam()));
  ASSERT_NE(rank, nullptr);
  const std::vector<Drawn> expected = Draw(*rank, {}, Requests());
  rank = nullptr;
  worker::comm::MemoryStore store;
  absl::Status connected;
  const ExecutorOptions options = Options(GetParam());
  worker::comm::LocalHostGroup group;
  auto made = Rank::Create(options, group, [&](kernels::Backend& backend) {
    auto communicator = worker::comm::CreateNcclCommunicator({}, &store, &backend);
    connected = communicator.status();
    return communicator;
  });
  if (absl::IsUnavailable(connected)) GTEST_SKIP() << connected;
  ASSERT_TRUE(made.ok()) << made.status();
  rank = *std::move(made);
  EXPECT_EQ(Draw(*rank, {.pipelined = true}, Requests()), expected);
}

// How a rank of a group is connected, by its index.
using GroupCommunicator = std::function<absl::StatusOr<std::unique_ptr<worker::comm::Communicator>>(
    int index, kernels::Backend& backend)>;

// Ranks as threads, each on GPU `index` or all on the first; rank 0 drives.
std::vector<Drawn> DrawInGroup(ExecutorOptions options, int size, bool own_gpus,
                               const Schedule& schedule, const GroupCommunicator& communicator) {
  options.tensor_parallel_size = size;
  worker::comm::ThreadHostHub host_hub(size);
  std::vector<Drawn> drawn;
  OnRanks(size, [&](int index) {
    worker::comm::ThreadHostGroup group(&host_hub, index);
    ExecutorOptions mine = options;
    mine.rank = index;
    mine.device_ordinal = own_gpus ? index : 0;
    auto rank = Rank::Create(
        mine, group, [&](kernels::Backend& backend) { return communicator(index, backend); });
    ASSERT_TRUE(rank.ok()) << rank.status();
    EXPECT_EQ((*rank)->recorded_rows().empty(), !own_gpus || !options.record_steps);
    ModelExecutor executor(**rank);
    if (index != 0) {
      const absl::Status ended = worker::exec::RunFollower(group, executor);
      EXPECT_TRUE(ended.ok()) << ended;
      return;
    }
    BroadcastingExecutor leader(executor, group);
    Driver driver(leader, schedule);
    auto result = driver.Run(Requests());
    EXPECT_TRUE(result.ok()) << result.status();
    if (result.ok()) drawn = *std::move(result);
    plan::StepPlan bye;
    bye.shutdown = true;
    EXPECT_TRUE(group.Broadcast(plan::Encode(bye)).ok());
  });
  return drawn;
}

std::vector<Drawn> DrawOnOneGpu(const ExecutorOptions& options, int size,
                                const Schedule& schedule) {
  worker::comm::ThreadHub hub(size);
  return DrawInGroup(options, size, false, schedule, [&](int index, kernels::Backend& backend) {
    return std::make_unique<worker::comm::HostStagedCommunicator>(
        &backend, std::make_unique<worker::comm::ThreadCommunicator>(&hub, index, &backend));
  });
}

std::vector<Drawn> DrawByNccl(const ExecutorOptions& options, int size, const Schedule& schedule) {
  worker::comm::MemoryStore store;
  return DrawInGroup(options, size, true, schedule, [&](int index, kernels::Backend& backend) {
    return worker::comm::CreateNcclCommunicator({.rank = index, .size = size}, &store, &backend);
  });
}

TEST_P(GpuModel, RanksThatShareTheGpuGiveTheSameTokensInEveryCompany) {
  for (const int size : {2, 4}) {
    const std::vector<Drawn> crowd = DrawOnOneGpu(Options(GetParam()), size, {});
    ASSERT_EQ(crowd.size(), Requests().size());
    EXPECT_EQ(DrawOnOneGpu(Options(GetParam()), size, {.budget = 33, .concurrency = 2}), crowd)
        << size << " ranks";
  }
}

// Sums in rank order have the same bits whoever moves them, and whether their moving was recorded:
// with graphs NCCL's collectives are captured.
class GpuModelOnSeveral : public GpuModel {
 protected:
  // Unavailable where libnccl.so.2 is not to be found.
  static absl::Status ConnectAlone() {
    const auto backend = kernels::CreateCudaBackend({});
    if (!backend.ok()) return absl::InternalError(backend.status().message());
    worker::comm::MemoryStore store;
    return worker::comm::CreateNcclCommunicator({}, &store, backend->get()).status();
  }

  void ExpectSameByNccl(int size) {
    const int gpus = kernels::CudaDeviceCount();
    if (gpus < size) GTEST_SKIP() << size << " GPUs are needed, and there are " << gpus;
    const absl::Status alone = ConnectAlone();
    if (absl::IsUnavailable(alone)) GTEST_SKIP() << alone;
    ASSERT_TRUE(alone.ok()) << alone;
    ExecutorOptions options = Options(GetParam());
    const std::vector<Drawn> expected = DrawOnOneGpu(options, size, {});
    ASSERT_EQ(expected.size(), Requests().size());
    options.record_steps = false;
    EXPECT_EQ(DrawByNccl(options, size, {}), expected) << "without graphs";
    options.record_steps = true;
    EXPECT_EQ(DrawByNccl(options, size, {}), expected) << "with graphs";
    EXPECT_EQ(DrawByNccl(options, size, {.budget = 33, .concurrency = 2, .pipelined = true}),
              expected)
        << "with graphs, in other company";
  }
};

TEST_P(GpuModelOnSeveral, TwoRanksByNcclGiveTheTokensOfTwoOnOneGpu) { ExpectSameByNccl(2); }

TEST_P(GpuModelOnSeveral, FourRanksByNcclGiveTheTokensOfFourOnOneGpu) { ExpectSameByNccl(4); }

std::string SchemeName(const ::testing::TestParamInfo<LoadQuantization>& scheme) {
  return scheme.param == LoadQuantization::kRtnGroup128 ? "g128" : "per_channel";
}
INSTANTIATE_TEST_SUITE_P(Schemes, GpuModel,
                         ::testing::Values(LoadQuantization::kRtnGroup128,
                                           LoadQuantization::kRtnPerChannel),
                         SchemeName);
INSTANTIATE_TEST_SUITE_P(Schemes, GpuModelOnSeveral,
                         ::testing::Values(LoadQuantization::kRtnGroup128,
                                           LoadQuantization::kRtnPerChannel),
                         SchemeName);

}  // namespace
}  // namespace qserve::tests
