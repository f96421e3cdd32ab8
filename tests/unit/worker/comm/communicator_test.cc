// Every transport against the serial sum in rank order, to the bit: sizes around every edge, 1 to 4
// ranks, strided rows, both ways of adding; then what happens when a rank aborts or goes away.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <csignal>
#include <functional>
#include <thread>

#include "common/philox.h"
#include "kernels/quant/half.h"
#include "tests/unit/worker/comm/host_memory_backend.h"
#include "worker/comm/gloo_communicator.h"
#include "worker/comm/host_staged_communicator.h"
#include "worker/comm/local_communicator.h"
#include "worker/comm/memory_store.h"
#include "worker/comm/shared_memory_communicator.h"
#include "worker/comm/shared_segment.h"
#include "worker/comm/thread_communicator.h"

namespace qserve::worker::comm {
namespace {

using ::testing::HasSubstr;

enum class Transport {
  kThread,
  kHostStaged,
  kGloo,
  kGlooOneShot,
  kGlooParted,
  kShared,
  kSharedParted
};

constexpr int64_t kAlways = int64_t{1} << 40;

// One rank: its backend and its communicator.
struct Rank {
  HostMemoryBackend backend;
  std::unique_ptr<Communicator> communicator;
};

// The ranks of a group, each run by a thread of its own.
class Group {
 public:
  Group(Transport transport, int size, Duration timeout = std::chrono::minutes(2))
      : hub_(size), ranks_(static_cast<size_t>(size)) {
    std::signal(SIGPIPE, SIG_IGN);  // as a rank's process does
    RunAll([&](int r) {
      kernels::Backend* backend = &rank(r).backend;
      if (transport == Transport::kThread) {
        rank(r).communicator = std::make_unique<ThreadCommunicator>(&hub_, r, backend);
      } else if (transport == Transport::kHostStaged) {
        rank(r).communicator = std::make_unique<HostStagedCommunicator>(
            backend, std::make_unique<ThreadCommunicator>(&hub_, r, backend));
      } else if (transport == Transport::kShared || transport == Transport::kSharedParted) {
        SharedMemoryOptions options = {.rank = r, .size = size, .collective_timeout = timeout};
        if (transport == Transport::kSharedParted) {
          options.one_shot_bytes = 0;
          options.buffer_bytes = 4096;
        }
        auto made = CreateSharedMemoryCommunicator(options, &store_, backend);
        ASSERT_TRUE(made.ok()) << made.status();
        rank(r).communicator = *std::move(made);
      } else {
        GlooOptions options;
        options.rank = r;
        options.size = size;
        options.bind_host = "127.0.0.1";
        options.collective_timeout = timeout;
        if (transport == Transport::kGlooOneShot) options.one_shot_bytes = kAlways;
        if (transport == Transport::kGlooParted) options.one_shot_bytes = 0;
        auto made = CreateGlooCommunicator(options, &store_, backend);
        ASSERT_TRUE(made.ok()) << made.status();
        rank(r).communicator = *std::move(made);
      }
    });
  }
  int size() const { return static_cast<int>(ranks_.size()); }
  Rank& rank(int r) { return ranks_[static_cast<size_t>(r)]; }
  void RunAll(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (int r = 0; r < size(); ++r) threads.emplace_back(body, r);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  ThreadHub hub_;
  MemoryStore store_;
  std::vector<Rank> ranks_;
};

// Magnitudes from 2^-12 to 2^12, so that another order of adding gives other bits.
std::vector<float> Values(int rank, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  const std::array<uint32_t, 2> key{1234, static_cast<uint32_t>(rank)};
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = Philox4x32({static_cast<uint32_t>(i), 0, 0, 0}, key);
    const float unit = static_cast<float>(bits[0] >> 8) / 16777216.0f - 0.5f;
    values[static_cast<size_t>(i)] = std::ldexp(unit, static_cast<int>(bits[1] % 25) - 12);
  }
  return values;
}

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  bits.reserve(values.size());
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

std::vector<float> SerialSum(int ranks, int64_t count, bool reversed = false) {
  std::vector<float> sum = Values(reversed ? ranks - 1 : 0, count);
  for (int r = 1; r < ranks; ++r) {
    const std::vector<float> next = Values(reversed ? ranks - 1 - r : r, count);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += next[i];
  }
  return sum;
}

class CommunicatorTest : public ::testing::TestWithParam<std::tuple<Transport, int>> {
 protected:
  Transport transport() const { return std::get<0>(GetParam()); }
  int size() const { return std::get<1>(GetParam()); }
};

TEST_P(CommunicatorTest, SumsInRankOrderWhateverTheSize) {
  Group group(transport(), size());
  for (const int64_t count : {0, 1, 2, 3, 7, 64, 1023, 4099, 16384, 16385, 100'003, 1 << 20}) {
    const std::vector<uint32_t> expected = Bits(SerialSum(size(), count));
    group.RunAll([&](int r) {
      std::vector<float> data = Values(r, count);
      const kernels::Status status = group.rank(r).backend.Run(0, [&] {
        group.rank(r).communicator->AllReduceSumInPlace({data.data(), 1, count, count});
      });
      EXPECT_TRUE(status.ok()) << status.message();
      EXPECT_TRUE(Bits(data) == expected) << "rank " << r << ", " << count << " floats";
    });
  }
}

TEST_P(CommunicatorTest, RoundsTheSumOnceToTheTypeThatIsAskedFor) {
  Group group(transport(), size());
  for (const int64_t count : {5, 16385}) {
    const std::vector<float> expected = SerialSum(size(), count);
    group.RunAll([&](int r) {
      const std::vector<float> data = Values(r, count);
      std::vector<uint16_t> half(data.size()), bf16(data.size());
      const kernels::Matrix<const float> partial = {data.data(), 1, count, count};
      comm::Communicator& communicator = *group.rank(r).communicator;
      communicator.AllReduceSum(partial, {half.data(), kernels::FloatType::kF16, 1, count, count});
      communicator.AllReduceSum(partial, {bf16.data(), kernels::FloatType::kBf16, 1, count, count});
      for (size_t i = 0; i < data.size(); ++i) {
        ASSERT_EQ(half[i], kernels::FloatToHalf(expected[i])) << i;
        ASSERT_EQ(bf16[i], kernels::FloatToBf16(expected[i])) << i;
      }
    });
  }
}

TEST_P(CommunicatorTest, LeavesTheGapsBetweenRowsAlone) {
  Group group(transport(), size());
  for (const int64_t cols : {1, 5, 4096}) {
    const int64_t rows = 9;
    const int64_t stride = cols + 3;
    const std::vector<float> expected = SerialSum(size(), rows * stride);
    group.RunAll([&](int r) {
      const std::vector<float> before = Values(r, rows * stride);
      std::vector<float> data = before;
      group.rank(r).communicator->AllReduceSumInPlace({data.data(), rows, cols, stride});
      for (int64_t i = 0; i < rows * stride; ++i) {
        const auto at = static_cast<size_t>(i);
        const float want = i % stride < cols ? expected[at] : before[at];
        ASSERT_EQ(std::bit_cast<uint32_t>(data[at]), std::bit_cast<uint32_t>(want)) << i;
      }
    });
  }
}

TEST_P(CommunicatorTest, GathersColumnsOnRankZero) {
  Group group(transport(), size());
  const int64_t rows = 5;
  const int64_t cols = 301;
  const int64_t out_stride = cols * size() + 4;
  group.RunAll([&](int r) {
    const std::vector<float> local = Values(r, rows * (cols + 1));
    std::vector<float> out(static_cast<size_t>(rows * out_stride), -1.0f);
    group.rank(r).communicator->GatherColumns(
        {local.data(), rows, cols, cols + 1},
        {r == 0 ? out.data() : nullptr, rows, cols * size(), out_stride});
    if (r != 0) return;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < out_stride; ++c) {
        const auto at = static_cast<size_t>(row * (cols + 1) + c % cols);
        const float want =
            c < cols * size() ? Values(static_cast<int>(c / cols), rows * (cols + 1))[at] : -1.0f;
        if (c % 97 != 0 && c < cols * size()) continue;  // the oracle is slow; every rank is met
        ASSERT_EQ(out[static_cast<size_t>(row * out_stride + c)], want) << row << ", " << c;
      }
    }
  });
}

TEST_P(CommunicatorTest, BroadcastsIds) {
  Group group(transport(), size());
  for (const int64_t count : {0, 1, 257}) {
    group.RunAll([&](int r) {
      std::vector<int32_t> ids(static_cast<size_t>(count), r == 0 ? 4711 : -1);
      group.rank(r).communicator->BroadcastIds(ids.data(), count);
      EXPECT_THAT(ids, ::testing::Each(4711));
    });
  }
}

TEST_P(CommunicatorTest, ManyCallsInARowStayInStep) {
  Group group(transport(), size());
  group.RunAll([&](int r) {
    Communicator& communicator = *group.rank(r).communicator;
    for (int step = 0; step < 60; ++step) {
      std::vector<float> data(static_cast<size_t>(1 + step * 7 % 40), static_cast<float>(step));
      const auto count = static_cast<int64_t>(data.size());
      communicator.AllReduceSumInPlace({data.data(), 1, count, count});
      ASSERT_THAT(data, ::testing::Each(static_cast<float>(step * size())));
      int32_t id = r == 0 ? step : -1;
      communicator.BroadcastIds(&id, 1);
      ASSERT_EQ(id, step);
    }
  });
}

std::string NameOf(const ::testing::TestParamInfo<std::tuple<Transport, int>>& info) {
  constexpr const char* kNames[] = {"Thread",     "HostStaged", "Gloo",        "GlooOneShot",
                                    "GlooParted", "Shared",     "SharedParted"};
  return kNames[static_cast<int>(std::get<0>(info.param))] +
         std::to_string(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(
    Transports, CommunicatorTest,
    ::testing::Combine(::testing::Values(Transport::kThread, Transport::kHostStaged,
                                         Transport::kGloo, Transport::kGlooOneShot,
                                         Transport::kGlooParted, Transport::kShared,
                                         Transport::kSharedParted),
                       ::testing::Values(1, 2, 3, 4)),
    NameOf);

TEST(Values, AnotherOrderWouldShow) {
  EXPECT_NE(Bits(SerialSum(3, 1000)), Bits(SerialSum(3, 1000, true)));
}

class LossTest : public ::testing::TestWithParam<Transport> {};

TEST_P(LossTest, AbortEndsAPendingCollectiveAndAllLaterOnes) {
  Group group(GetParam(), 3);
  // Rank 2 never comes; the others are told, as they are by their heartbeats when the supervisor
  // misses a rank.
  group.RunAll([&](int r) {
    if (r == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      group.rank(0).communicator->Abort();
      group.rank(1).communicator->Abort();
      return;
    }
    for (int attempt = 0; attempt < 2; ++attempt) {
      std::vector<float> data(100'000);
      const kernels::Status status = group.rank(r).backend.Run(0, [&] {
        group.rank(r).communicator->AllReduceSumInPlace({data.data(), 1, 100'000, 100'000});
      });
      EXPECT_EQ(status.code(), kernels::StatusCode::kDevice) << "rank " << r;
      EXPECT_FALSE(status.message().empty());
    }
  });
}
INSTANTIATE_TEST_SUITE_P(Transports, LossTest,
                         ::testing::Values(Transport::kThread, Transport::kHostStaged,
                                           Transport::kGlooOneShot, Transport::kGlooParted,
                                           Transport::kShared, Transport::kSharedParted));

TEST(GlooCommunicator, AnAbortReachesThePeersThatWaitForTheRank) {
  Group group(Transport::kGloo, 2, std::chrono::hours(1));
  group.RunAll([&](int r) {
    if (r == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      group.rank(1).communicator->Abort();
      return;
    }
    std::vector<float> data(64);
    const kernels::Status status = group.rank(0).backend.Run(
        0, [&] { group.rank(0).communicator->AllReduceSumInPlace({data.data(), 1, 64, 64}); });
    EXPECT_EQ(status.code(), kernels::StatusCode::kDevice);
  });
}

// What every transport between processes says of a peer that does not answer.
struct Silence {
  const char* name;
  Transport transport;
  const char* message;
};
class CommunicatorLoss : public ::testing::TestWithParam<Silence> {};

TEST_P(CommunicatorLoss, APeerThatIsGoneIsAnErrorForEveryCollective) {
  for (int call = 0; call < 3; ++call) {
    Group group(GetParam().transport, 2, std::chrono::hours(1));
    group.RunAll([&](int r) {
      if (r == 1) return group.rank(1).communicator.reset();
      std::vector<float> data(64);
      std::vector<int32_t> ids(4);
      const kernels::Status status = group.rank(0).backend.Run(0, [&] {
        Communicator& communicator = *group.rank(0).communicator;
        // A broadcast may be handed over before the loss is seen; the second one may not.
        for (int i = 0; i < 1000 && call == 0; ++i) communicator.BroadcastIds(ids.data(), 4);
        if (call == 1) communicator.AllReduceSumInPlace({data.data(), 1, 64, 64});
        if (call == 2)
          communicator.GatherColumns({data.data(), 1, 32, 32}, {data.data(), 1, 64, 64});
      });
      EXPECT_EQ(status.code(), kernels::StatusCode::kDevice) << call;
    });
  }
}

TEST_P(CommunicatorLoss, ASilentPeerIsAnErrorAfterTheTimeOut) {
  Group group(GetParam().transport, 2, std::chrono::milliseconds(300));
  std::vector<float> data(8);
  const kernels::Status status = group.rank(0).backend.Run(
      0, [&] { group.rank(0).communicator->AllReduceSumInPlace({data.data(), 1, 8, 8}); });
  EXPECT_EQ(status.code(), kernels::StatusCode::kDevice);
  EXPECT_THAT(status.message(), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(Processes, CommunicatorLoss,
                         ::testing::Values(Silence{"Gloo", Transport::kGloo, "all-reduce"},
                                           Silence{"SharedMemory", Transport::kShared,
                                                   "rank 1 did not come in time"}),
                         [](const auto& parameter) { return std::string(parameter.param.name); });

TEST(GlooCommunicator, SaysWhoCouldNotConnect) {
  MemoryStore store;
  HostMemoryBackend backend;
  GlooOptions options;
  options.rank = 1;
  options.size = 2;
  options.bind_host = "127.0.0.1";
  options.connect_timeout = std::chrono::milliseconds(200);
  const auto made = CreateGlooCommunicator(options, &store, &backend);
  EXPECT_TRUE(absl::IsUnavailable(made.status())) << made.status();
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("rank 1"));
}

TEST(SharedMemoryCommunicator, RanksThatCannotShareMemoryAllSaySo) {
  MemoryStore store;
  std::array<HostMemoryBackend, 2> backends;
  std::array<absl::Status, 2> outcomes;
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      // Rank 1 expects another segment than rank 0 makes.
      const SharedMemoryOptions options = {.rank = r, .size = 2, .buffer_bytes = 4096 << r};
      outcomes[static_cast<size_t>(r)] =
          CreateSharedMemoryCommunicator(options, &store, &backends[static_cast<size_t>(r)])
              .status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : outcomes) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  }
}

TEST(SharedSegment, OnlyNamesOfSegmentsAreOpened) {
  for (const char* name : {"", "/", "/qserve-../x", "/etc/passwd", "/qserve-0123456789abcdeF"}) {
    EXPECT_EQ(SharedSegment::Open(name, 2, 4096).status().code(),
              absl::StatusCode::kFailedPrecondition)
        << name;
  }
  EXPECT_EQ(SharedSegment::Open("/qserve-0123", 2, 4096).status().code(),
            absl::StatusCode::kNotFound);
  const auto made = SharedSegment::Create(2, 4096);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_TRUE(SharedSegment::Open((*made)->name(), 2, 4096).ok());
  EXPECT_FALSE(SharedSegment::Open((*made)->name(), 3, 4096).ok());
  (*made)->RemoveName();
  EXPECT_FALSE(SharedSegment::Open((*made)->name(), 2, 4096).ok());
}

TEST(HostStagedCommunicator, CopiesEachByteOnceEachWay) {
  Group group(Transport::kHostStaged, 2);
  group.RunAll([&](int r) {
    std::vector<float> data = Values(r, 1000);
    group.rank(r).communicator->AllReduceSumInPlace({data.data(), 10, 50, 100});
    EXPECT_EQ(group.rank(r).backend.bytes_out, 10 * 50 * 4);
    EXPECT_EQ(group.rank(r).backend.bytes_in, 10 * 50 * 4);
  });
}

TEST(LocalCommunicator, IsAGroupOfOne) {
  HostMemoryBackend backend;
  LocalCommunicator communicator(&backend);
  EXPECT_EQ(communicator.size(), 1);
  std::vector<float> data = Values(0, 12);
  communicator.AllReduceSumInPlace({data.data(), 3, 4, 4});
  EXPECT_EQ(data, Values(0, 12));
  std::vector<float> out(18, -1.0f);
  communicator.GatherColumns({data.data(), 3, 4, 4}, {out.data(), 3, 4, 6});
  EXPECT_EQ(out[6], data[4]);
  EXPECT_EQ(out[5], -1.0f);
}

}  // namespace
}  // namespace qserve::worker::comm
