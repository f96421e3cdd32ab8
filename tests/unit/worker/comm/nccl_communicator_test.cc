// The communicator of GPUs over a fake NCCL and emulated streams: sums to the bit, work that is
// recorded and replayed, ids of other generations, and every way in which a rank can be lost.
#include "worker/comm/nccl_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <thread>

#include "common/philox.h"
#include "tests/unit/worker/comm/fake_nccl.h"
#include "tests/unit/worker/comm/host_memory_backend.h"
#include "tests/unit/worker/comm/memory_store.h"
#include "worker/comm/matrix_copy.h"
#include "worker/comm/nccl_rendezvous.h"

namespace qserve::worker::comm {
namespace {

using kernels::FloatType;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace emulator = kernels::cuda::emulator;

// A rank's stream, as the backend would share it.
class TestStream final : public kernels::cuda::CudaStreamOwner {
 public:
  explicit TestStream(uint64_t order_seed) : stream_(order_seed) {}
  kernels::cuda::StreamHandle stream() override { return &stream_; }
  bool Issuing() const override { return issuing; }
  bool Recording() const override { return stream_.recording(); }
  void Fail(kernels::Status status) override {
    const std::lock_guard lock(mutex_);
    if (failure_.ok()) failure_ = std::move(status);
  }
  void DropGraphs() override {
    stream_.Synchronize();
    graphs_dropped = true;
  }
  // As the end of Backend::Run: waits for the device and clears the failure.
  kernels::Status Finish() {
    stream_.Synchronize();
    const std::lock_guard lock(mutex_);
    return std::exchange(failure_, kernels::Status());
  }
  emulator::Stream& emulated() { return stream_; }

  bool issuing = true;
  std::atomic<bool> graphs_dropped{false};

 private:
  emulator::Stream stream_;
  std::mutex mutex_;
  kernels::Status failure_;
};

struct Gpu {
  explicit Gpu(uint64_t seed) : stream(seed) {}
  HostMemoryBackend backend;
  TestStream stream;
  FakeNcclProbe probe;
  std::unique_ptr<Communicator> communicator;
};

class Gpus {
 public:
  explicit Gpus(NcclOptions options) : options_(std::move(options)) {
    for (int r = 0; r < options_.size; ++r) {
      gpus_.push_back(std::make_unique<Gpu>(static_cast<uint64_t>(r)));
    }
    RunAll([&](int r) {
      auto made = Connect(r);
      ASSERT_TRUE(made.ok()) << made.status();
      gpu(r).communicator = *std::move(made);
    });
  }
  // Good-byes wait for each other's streams.
  ~Gpus() {
    RunAll([&](int r) { gpu(r).communicator.reset(); });
  }
  Gpu& gpu(int r) { return *gpus_[static_cast<size_t>(r)]; }
  Communicator& operator[](int r) { return *gpu(r).communicator; }
  int size() const { return options_.size; }
  void RunAll(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (int r = 0; r < size(); ++r) threads.emplace_back(body, r);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  absl::StatusOr<std::unique_ptr<Communicator>> Connect(int r) {
    NcclOptions options = options_;
    options.rank = r;
    return ConnectNccl(options, &store_, &gpu(r).backend, &gpu(r).stream,
                       std::make_unique<FakeNccl>(&wires_, &gpu(r).probe));
  }

  NcclOptions options_;
  MemoryStore store_;
  FakeNcclWires wires_;
  std::vector<std::unique_ptr<Gpu>> gpus_;
};

constexpr int64_t kAlways = int64_t{1} << 40;

NcclOptions Options(int size, int64_t one_shot_bytes = 1 << 14) {
  NcclOptions options;
  options.size = size;
  options.generation = 7;
  options.one_shot_bytes = one_shot_bytes;
  options.workspace_bytes = 1 << 18;
  options.watch_interval = std::chrono::milliseconds(1);
  return options;
}

// Magnitudes from 2^-12 to 2^12, so that another order of adding gives other bits.
std::vector<float> Values(int rank, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  const std::array<uint32_t, 2> key{99, static_cast<uint32_t>(rank)};
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = Philox4x32({static_cast<uint32_t>(i), 0, 0, 0}, key);
    const float unit = static_cast<float>(bits[0] >> 8) / 16777216.0f - 0.5f;
    values[static_cast<size_t>(i)] = std::ldexp(unit, static_cast<int>(bits[1] % 25) - 12);
  }
  return values;
}

std::vector<float> ExpectedSum(int ranks, int64_t count) {
  std::vector<std::vector<float>> all;
  std::vector<const float*> inputs;
  for (int r = 0; r < ranks; ++r) all.push_back(Values(r, count));
  for (const auto& one : all) inputs.push_back(one.data());
  std::vector<float> sum(static_cast<size_t>(count));
  SumInRankOrder(inputs.data(), ranks, count, sum.data());
  return sum;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class NcclSumTest : public ::testing::TestWithParam<std::tuple<int, int64_t>> {
 protected:
  int size() const { return std::get<0>(GetParam()); }
  NcclOptions options() const { return Options(size(), std::get<1>(GetParam())); }
};

TEST_P(NcclSumTest, SumsInRankOrderWhateverTheSize) {
  Gpus gpus(options());
  // The last ones take several pieces.
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {1, 7}, {3, 5}, {8, 64}, {5, 257}, {130, 1024}}) {
    const std::vector<float> expected = ExpectedSum(size(), rows * cols);
    gpus.RunAll([&, rows = rows, cols = cols](int r) {
      std::vector<float> data = Values(r, rows * cols);
      gpus[r].AllReduceSumInPlace({data.data(), rows, cols, cols});
      EXPECT_TRUE(gpus.gpu(r).stream.Finish().ok());
      EXPECT_TRUE(SameBits(data, expected)) << "rank " << r << ", " << rows << " x " << cols;
    });
  }
}

TEST_P(NcclSumTest, RoundsOnceToTheTypeOfTheSum) {
  Gpus gpus(options());
  for (const FloatType type : {FloatType::kF16, FloatType::kBf16}) {
    for (const int64_t cols : {96, 515}) {
      const int64_t rows = 20;
      const std::vector<float> sum = ExpectedSum(size(), rows * cols);
      std::vector<uint16_t> expected(sum.size());
      Store(sum.data(), {expected.data(), type, rows, cols, cols});
      gpus.RunAll([&](int r) {
        const std::vector<float> partial = Values(r, rows * cols);
        std::vector<uint16_t> out(sum.size(), 0xffff);
        gpus[r].AllReduceSum({partial.data(), rows, cols, cols},
                             {out.data(), type, rows, cols, cols});
        EXPECT_TRUE(gpus.gpu(r).stream.Finish().ok());
        EXPECT_EQ(out, expected) << "rank " << r;
      });
    }
  }
}

TEST_P(NcclSumTest, LeavesTheGapsBetweenRowsAlone) {
  Gpus gpus(options());
  const int64_t rows = 9, cols = 1021, stride = 1024;
  const std::vector<float> expected = ExpectedSum(size(), rows * stride);
  gpus.RunAll([&](int r) {
    const std::vector<float> before = Values(r, rows * stride);
    std::vector<float> data = before;
    gpus[r].AllReduceSumInPlace({data.data(), rows, cols, stride});
    EXPECT_TRUE(gpus.gpu(r).stream.Finish().ok());
    for (size_t i = 0; i < data.size(); ++i) {
      const bool gap = static_cast<int64_t>(i) % stride >= cols;
      ASSERT_EQ(std::bit_cast<uint32_t>(data[i]),
                std::bit_cast<uint32_t>(gap ? before[i] : expected[i]));
    }
  });
}

TEST_P(NcclSumTest, GathersColumnsOnRankZeroAndBroadcastsIds) {
  Gpus gpus(options());
  const int64_t rows = 70, cols = 301, stride = cols * size() + 4;
  gpus.RunAll([&](int r) {
    std::vector<float> local = Values(r, rows * stride);
    std::vector<float> out(static_cast<size_t>(rows * stride), -1.0f);
    // Rank 0's own columns are in place already.
    if (r == 0) out = local;
    gpus[r].GatherColumns({r == 0 ? out.data() : local.data(), rows, cols, stride},
                          {r == 0 ? out.data() : nullptr, rows, cols * size(), stride});
    std::vector<int32_t> ids(5, r == 0 ? 4711 : -1);
    gpus[r].BroadcastIds(ids.data(), 5);
    EXPECT_TRUE(gpus.gpu(r).stream.Finish().ok());
    EXPECT_THAT(ids, Each(4711));
    if (r != 0) return;
    for (int from = 0; from < size(); ++from) {
      const std::vector<float> theirs = Values(from, rows * stride);
      for (int64_t row = 0; row < rows; ++row) {
        for (const int64_t c : {int64_t{0}, int64_t{150}, cols - 1}) {
          ASSERT_EQ(out[static_cast<size_t>(row * stride + from * cols + c)],
                    theirs[static_cast<size_t>(row * stride + c)]);
        }
      }
    }
    EXPECT_EQ(out[static_cast<size_t>(stride - 1)], local[static_cast<size_t>(stride - 1)]);
  });
}

TEST_P(NcclSumTest, RecordedCollectivesAreRepeatedByReplaying) {
  Gpus gpus(options());
  const int64_t count = 1536;
  const std::vector<float> expected = ExpectedSum(size(), count);
  gpus.RunAll([&](int r) {
    TestStream& stream = gpus.gpu(r).stream;
    std::vector<float> partial = Values(r, count), sum(partial.size());
    const auto step = [&] {
      gpus[r].AllReduceSum({partial.data(), 1, count, count},
                           {sum.data(), FloatType::kF32, 1, count, count});
    };
    stream.emulated().BeginRecording();
    step();
    const auto graph = stream.emulated().EndRecording();
    const int calls = gpus.gpu(r).probe.calls;
    EXPECT_GT(calls, 0);
    for (int replay = 0; replay < 3; ++replay) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      stream.issuing = false;  // the step is gone through for its inputs only
      step();
      stream.issuing = true;
      for (const auto& work : graph) stream.emulated().Enqueue(work);
      EXPECT_TRUE(stream.Finish().ok());
      EXPECT_TRUE(SameBits(sum, expected));
    }
    EXPECT_EQ(gpus.gpu(r).probe.calls, calls) << "a replay needs no call";
  });
}

std::string NameOf(const ::testing::TestParamInfo<std::tuple<int, int64_t>>& info) {
  const int64_t one_shot = std::get<1>(info.param);
  return (one_shot == 0         ? std::string("Parted")
          : one_shot == kAlways ? std::string("OneShot")
                                : std::string("Mixed")) +
         std::to_string(std::get<0>(info.param));
}
INSTANTIATE_TEST_SUITE_P(Groups, NcclSumTest,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4),
                                            ::testing::Values(int64_t{0}, int64_t{1} << 14,
                                                              kAlways)),
                         NameOf);

TEST(NcclCommunicator, GoesAwayInOrder) {
  FakeNcclProbe* probe = nullptr;
  bool dropped_before = false;
  {
    Gpus gpus(Options(2));
    probe = &gpus.gpu(0).probe;
    TestStream& stream = gpus.gpu(0).stream;
    probe->on_end = [&] { dropped_before = stream.graphs_dropped; };
    gpus.RunAll([&](int r) { gpus.gpu(r).communicator.reset(); });
    EXPECT_TRUE(probe->disconnected);
    EXPECT_FALSE(probe->aborted);
  }
  EXPECT_TRUE(dropped_before) << "graphs hold NCCL's work and go first";
}

// One collective, and how the step that contained it ended.
kernels::Status SumOf(Gpus& gpus, int r) {
  std::vector<float> data(4096, 1.0f);
  gpus[r].AllReduceSumInPlace({data.data(), 1, 4096, 4096});
  return gpus.gpu(r).stream.Finish();
}

TEST(NcclLoss, ARankThatDoesNotComeIsAnErrorAfterTheTimeOut) {
  for (const int64_t one_shot : {int64_t{0}, kAlways}) {
    NcclOptions options = Options(3, one_shot);
    options.step_timeout = std::chrono::milliseconds(200);
    Gpus gpus(options);
    gpus.RunAll([&](int r) {
      if (r == 2) return;
      const kernels::Status first = SumOf(gpus, r);
      EXPECT_EQ(first.code(), kernels::StatusCode::kDevice);
      EXPECT_THAT(first.message(), HasSubstr("does not answer"));
      EXPECT_EQ(SumOf(gpus, r).code(), kernels::StatusCode::kDevice) << "every later step too";
    });
    gpus.RunAll([&](int r) { gpus.gpu(r).communicator.reset(); });
    EXPECT_TRUE(gpus.gpu(0).probe.aborted);
    EXPECT_TRUE(gpus.gpu(1).probe.aborted);
    EXPECT_FALSE(gpus.gpu(2).probe.aborted);
  }
}

TEST(NcclLoss, AFailureThatNcclNoticesEndsPendingWork) {
  Gpus gpus(Options(2));
  gpus.RunAll([&](int r) {
    if (r == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      gpus.gpu(0).probe.fail_state = true;
      return;
    }
    const kernels::Status status = SumOf(gpus, 0);
    EXPECT_EQ(status.code(), kernels::StatusCode::kDevice);
    EXPECT_THAT(status.message(), HasSubstr("a remote rank has failed"));
  });
  gpus.gpu(0).communicator.reset();
  EXPECT_TRUE(gpus.gpu(0).probe.aborted);
}

TEST(NcclLoss, AbortEndsAPendingCollectiveAndAllLaterOnes) {
  Gpus gpus(Options(3));
  gpus.RunAll([&](int r) {
    if (r == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      gpus[0].Abort();
      gpus[1].Abort();
      return;
    }
    for (int attempt = 0; attempt < 2; ++attempt) {
      const kernels::Status status = SumOf(gpus, r);
      EXPECT_EQ(status.code(), kernels::StatusCode::kDevice);
      EXPECT_THAT(status.message(), HasSubstr("aborted"));
    }
  });
}

TEST(NcclLoss, AStepThatTakesLongIsNoLossWhileItMovesOn) {
  NcclOptions options = Options(2);
  options.step_timeout = std::chrono::seconds(30);
  Gpus gpus(options);
  gpus.RunAll([&](int r) {
    for (int step = 0; step < 50; ++step) {
      if (r == 1 && step % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      EXPECT_TRUE(SumOf(gpus, r).ok());
    }
  });
}

TEST(NcclStart, ARankThatNeverConnectsIsAnErrorForTheOthers) {
  MemoryStore store;
  FakeNcclWires wires;
  Gpu gpu(0);
  NcclOptions options = Options(2);
  options.connect_timeout = std::chrono::milliseconds(100);
  const auto made = ConnectNccl(options, &store, &gpu.backend, &gpu.stream,
                                std::make_unique<FakeNccl>(&wires, &gpu.probe));
  EXPECT_TRUE(absl::IsDeadlineExceeded(made.status())) << made.status();
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("rank 0 of 2"));
  EXPECT_TRUE(gpu.probe.aborted);
}

TEST(NcclStart, AFailureWhileConnectingIsSaid) {
  MemoryStore store;
  FakeNcclWires wires;
  Gpu gpu(0);
  gpu.probe.fail_state = true;
  const auto made = ConnectNccl(Options(2), &store, &gpu.backend, &gpu.stream,
                                std::make_unique<FakeNccl>(&wires, &gpu.probe));
  EXPECT_TRUE(absl::IsUnavailable(made.status())) << made.status();
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("a remote rank has failed"));
}

TEST(NcclRendezvous, AnIdBelongsToItsGeneration) {
  MemoryStore store;
  NcclOptions leader = Options(2), follower = Options(2);
  follower.rank = 1;
  follower.connect_timeout = std::chrono::milliseconds(50);
  ASSERT_TRUE(ShareNcclId(leader, &store, std::string("\0id\n", 4)).ok());
  EXPECT_EQ(*ShareNcclId(follower, &store, ""), std::string("\0id\n", 4));
  // Another generation waits for an id of its own ...
  follower.generation = 8;
  EXPECT_TRUE(absl::IsDeadlineExceeded(ShareNcclId(follower, &store, "").status()));
  // ... and refuses one that stands in its place.
  ASSERT_TRUE(store.Set("nccl/8/id", "qserve-nccl generation=7 size=2 id=old").ok());
  const absl::Status refused = ShareNcclId(follower, &store, "").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("generation=7"));
}

TEST(NcclRendezvous, RanksLearnWhatAllOfThemHave) {
  MemoryStore store;
  const auto shared = [&](int rank, const std::string& mine) {
    NcclOptions options = Options(2);
    options.rank = rank;
    return ShareWithAll(options, &store, "gpu", mine);
  };
  std::thread other([&] { EXPECT_THAT(*shared(1, "b"), ElementsAre("a", "b")); });
  EXPECT_THAT(*shared(0, "a"), ElementsAre("a", "b"));
  other.join();
  EXPECT_TRUE(AllDiffer({"a", "b", "c"}));
  EXPECT_FALSE(AllDiffer({"b", "a", "b"}));
  EXPECT_FALSE(AllDiffer({"", "a"}));
}

}  // namespace
}  // namespace qserve::worker::comm
