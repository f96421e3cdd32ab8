// The communicator of GPUs over a fake NCCL and emulated streams: ids of other generations, the
// order in which things go away, and every way in which a rank can be lost. Sums: nccl_sum_test.cc.
#include "worker/comm/nccl_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/worker/comm/nccl_group.h"
#include "worker/comm/nccl_rendezvous.h"

namespace qserve::worker::comm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

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
  std::vector<float> data(256, 1.0f);
  gpus[r].AllReduceSumInPlace({data.data(), 1, 256, 256});
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

// The thread that asks how things are hangs with the driver, holding nothing that an abort, the
// next step or the end would wait for.
TEST(NcclLoss, AnAbortWaitsForNoCallThatHangs) {
  for (const char* call : {"State", "MarkState"}) {
    Gpus gpus(Options(2));
    FakeNcclProbe& probe = gpus.gpu(0).probe;
    gpus.RunAll([&](int r) {
      if (r == 1) return;  // never comes
      std::vector<float> data(256, 1.0f);
      gpus[0].AllReduceSumInPlace({data.data(), 1, 256, 256});
      probe.hangs = call;
      while (!probe.hanging) std::this_thread::yield();
      gpus[0].Abort();
      EXPECT_THAT(gpus.gpu(0).stream.Finish().message(), HasSubstr("aborted")) << call;
      EXPECT_EQ(SumOf(gpus, 0).code(), kernels::StatusCode::kDevice);
    });
    gpus.gpu(0).communicator.reset();
    EXPECT_TRUE(probe.aborted);
    EXPECT_FALSE(probe.hung_in_vain) << call;
  }
}

// Likewise where it is the executor's own call that hangs, as when the driver's queue is full.
TEST(NcclLoss, AStepThatHangsInACallIsEndedByTheTimeOutOfTheOneBefore) {
  NcclOptions options = Options(2);
  options.step_timeout = std::chrono::milliseconds(100);
  Gpus gpus(options);
  FakeNcclProbe& probe = gpus.gpu(0).probe;
  gpus.RunAll([&](int r) {
    if (r == 1) return;
    std::vector<float> data(256, 1.0f);
    gpus[0].AllReduceSumInPlace({data.data(), 1, 256, 256});
    probe.hangs = "Add";
    gpus[0].AllReduceSumInPlace({data.data(), 1, 256, 256});
    EXPECT_THAT(gpus.gpu(0).stream.Finish().message(), HasSubstr("does not answer"));
  });
  EXPECT_FALSE(probe.hung_in_vain);
}

// A call that says it is done is not asked about: in an eager step there are hundreds.
TEST(NcclCommunicator, AsksForTheStateOnlyOfWhatIsInProgress) {
  NcclOptions options = Options(2);
  options.watch_interval = std::chrono::hours(1);
  Gpus gpus(options);
  for (const bool at_once : {true, false}) {
    gpus.RunAll([&](int r) {
      FakeNcclProbe& probe = gpus.gpu(r).probe;
      probe.at_once = at_once;
      const int states = probe.states, calls = probe.calls;
      EXPECT_TRUE(SumOf(gpus, r).ok());
      EXPECT_EQ(probe.states - states, at_once ? 0 : 3 * (probe.calls - calls));
    });
  }
}

TEST(NcclLoss, AStepThatTakesLongIsNoLossWhileItMovesOn) {
  NcclOptions options = Options(2);
  options.step_timeout = std::chrono::seconds(30);
  Gpus gpus(options);
  gpus.RunAll([&](int r) {
    for (int step = 0; step < 20; ++step) {
      if (r == 1 && step % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
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
