// What the CUDA backend does around its kernels, on the emulated runtime: memory and its ledger,
// one copy of inputs a step, steps begun ahead, recorded steps, and failures.
#include "kernels/cuda/cuda_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/runtime_emulated.h"
#include "kernels/ops.h"

namespace qserve::kernels::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kMebibyte = int64_t{1} << 20;

std::map<std::string, int64_t> LedgerOf(const Arena& arena) {
  std::map<std::string, int64_t> ledger;
  for (const MemoryUse& use : arena.Ledger()) ledger[use.purpose] = use.bytes;
  return ledger;
}

TEST(Arena, SmallPiecesShareABlockAndLargeOnesHaveTheirOwn) {
  EmulatedRuntime runtime({.memory_bytes = 64 * kMebibyte});
  Arena arena(&runtime, {.block_bytes = 4 * kMebibyte, .headroom_bytes = kMebibyte});
  std::vector<void*> pieces;
  for (const int64_t bytes : {int64_t{1}, int64_t{257}, kMebibyte}) {
    const StatusOr<void*> piece = arena.Allocate(bytes, "weights");
    ASSERT_TRUE(piece.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(*piece) % 256, 0u);
    pieces.push_back(*piece);
  }
  EXPECT_EQ(runtime.allocated_bytes(), 4 * kMebibyte);
  const StatusOr<void*> large = arena.Allocate(5 * kMebibyte + 1, "kv cache");
  ASSERT_TRUE(large.ok());
  EXPECT_EQ(runtime.allocated_bytes(), 9 * kMebibyte + 256);
  EXPECT_EQ(LedgerOf(arena), (std::map<std::string, int64_t>{{"weights", 256 + 512 + kMebibyte},
                                                             {"kv cache", 5 * kMebibyte + 256},
                                                             {"headroom", kMebibyte}}));
  EXPECT_EQ(arena.Available(), 64 * kMebibyte - runtime.allocated_bytes() - kMebibyte);

  // Free ranges are merged: afterwards a piece of their whole length fits again.
  arena.Free(pieces[0]);
  arena.Free(pieces[1]);
  const StatusOr<void*> again = arena.Allocate(256 + 512, "weights");
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*again, pieces[0]);
  arena.Free(*again);
  arena.Free(pieces[2]);
  arena.Free(*large);
  EXPECT_EQ(runtime.allocated_bytes(), 0) << "empty blocks go back";
  EXPECT_THAT(LedgerOf(arena),
              ElementsAre(std::pair<const std::string, int64_t>("headroom", kMebibyte)));
}

TEST(Arena, RefusalSaysWhatWasAskedWhatIsUsedAndWhatWouldFit) {
  EmulatedRuntime runtime({.memory_bytes = 64 * kMebibyte});
  Arena arena(&runtime, {.block_bytes = 0});
  const StatusOr<void*> weights = arena.Allocate(24 * kMebibyte, "weights");
  ASSERT_TRUE(weights.ok());
  const StatusOr<void*> refused = arena.Allocate(50 * kMebibyte, "kv cache");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), StatusCode::kOutOfMemory);
  for (const char* part : {"50 MiB for kv cache", "40 MiB of the device's 64 MiB are free",
                           "at most 40 MiB would fit", "weights 24 MiB"}) {
    EXPECT_THAT(refused.status().message(), HasSubstr(part));
  }
  EXPECT_TRUE(arena.Allocate(40 * kMebibyte, "kv cache").ok());
}

// Adds a step's numbers into device memory: what operations do, without a kernel.
class StepRunnerTest : public ::testing::Test {
 protected:
  StepRunnerTest() : runner_(&runtime_, &arena_, 4096) {
    EXPECT_TRUE(runner_.Create().ok());
    sums_ = static_cast<int32_t*>(*arena_.Allocate(64 * 4, "activations"));
    runtime_.FillAsync(sums_, 0, 64 * 4, runner_.stream());
    runner_.Synchronize();
  }
  ~StepRunnerTest() override {
    runner_.Synchronize();
    arena_.Free(sums_);
    EXPECT_THAT(runtime_.misuses(), IsEmpty());
  }

  // sums[i] += values[i] + extra[0], for all rows that there is room for.
  void Add(const std::vector<int32_t>& values, const std::vector<int32_t>& extra) {
    const int32_t* const a = runner_.Stage<int32_t>(values, std::ssize(values), -100);
    const int64_t room = runner_.last_room() / 4;
    const int32_t* const b = runner_.StageTail<int32_t>(extra, std::ssize(extra));
    StreamHandle const to = runner_.Issue();
    if (to == nullptr) return;
    static_cast<emulator::Stream*>(to)->Enqueue([this, a, b, room] {
      for (int64_t i = 0; i < room; ++i) sums_[i] += a[i] + b[0];
    });
  }
  std::function<void()> Step(std::vector<int32_t> values, std::vector<int32_t> extra = {0}) {
    return [this, values = std::move(values), extra = std::move(extra)] {
      Add(values, extra);
      runner_.EndRecorded();
      read_.clear();
      const auto bytes = static_cast<int64_t>(values.size() * 4);
      runner_.ReadBack(sums_, bytes, [this](std::span<const std::byte> bytes_read) {
        read_.resize(bytes_read.size() / 4);
        std::memcpy(read_.data(), bytes_read.data(), bytes_read.size());
      });
    };
  }

  EmulatedRuntime runtime_{EmulatedDevice{}};
  Arena arena_{&runtime_, {.block_bytes = 0}};
  StepRunner runner_;
  int32_t* sums_ = nullptr;
  std::vector<int32_t> read_;
};

TEST_F(StepRunnerTest, StepsAreBegunAheadAndReadInOrder) {
  ASSERT_TRUE(runner_.Begin(0, Step({1, 2})).ok());
  EXPECT_EQ(sums_[0], 0) << "nobody has waited yet";
  ASSERT_TRUE(runner_.Begin(0, Step({10, 20, 30})).ok());
  EXPECT_EQ(runner_.Begin(0, Step({5})).code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(runner_.Finish().ok());
  EXPECT_THAT(read_, ElementsAre(1, 2));
  ASSERT_TRUE(runner_.Begin(0, Step({100})).ok());
  ASSERT_TRUE(runner_.Finish().ok());
  EXPECT_THAT(read_, ElementsAre(11, 22, 30));
  ASSERT_TRUE(runner_.Finish().ok());
  EXPECT_THAT(read_, ElementsAre(111));
  EXPECT_TRUE(runner_.Finish().ok()) << "nothing is begun";
}

TEST_F(StepRunnerTest, ARecordedStepIsOneCopyAndOneLaunchForUpToItsRows) {
  ASSERT_TRUE(runner_.Record(4, Step({0, 0, 0, 0}, std::vector<int32_t>(900))).ok());
  EXPECT_EQ(runtime_.graphs(), 1);
  for (const std::vector<int32_t>& values : {std::vector<int32_t>{1, 2, 3, 4}, {5, 6}}) {
    const std::vector<int32_t> before(sums_, sums_ + 4);
    const int64_t copies = runtime_.copies_to_device(), launches = runtime_.graph_launches();
    ASSERT_TRUE(runner_.Run(4, Step(values, {7, 8})).ok());
    EXPECT_EQ(runtime_.copies_to_device(), copies + 1);
    EXPECT_EQ(runtime_.graph_launches(), launches + 1);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(sums_[i], before[i] + 7 + (i < values.size() ? values[i] : -100)) << i;
    }
  }
  EXPECT_THAT(read_, ElementsAre(sums_[0], sums_[1]));
  // Two of them under way at once use host memory of their own.
  const std::vector<int32_t> before(sums_, sums_ + 2);
  ASSERT_TRUE(runner_.Begin(4, Step({1, 1})).ok());
  ASSERT_TRUE(runner_.Begin(4, Step({30, 30})).ok());
  ASSERT_TRUE(runner_.Finish().ok());
  EXPECT_THAT(read_, ElementsAre(before[0] + 1, before[1] + 1));
  ASSERT_TRUE(runner_.Finish().ok());
  EXPECT_THAT(read_, ElementsAre(before[0] + 31, before[1] + 31));
}

// What recordings leave room for is not what their steps copy.
TEST_F(StepRunnerTest, OfLongListsOnlyWhatIsThereIsCopied) {
  static constexpr int64_t kRoom = 30000;
  const auto step = [this](std::vector<int32_t> first, std::vector<int32_t> second) {
    return [=, this] {
      const int32_t* const a =
          runner_.StageTail<int32_t>(first, std::max(std::ssize(first), kRoom));
      const int32_t* const b =
          runner_.StageTail<int32_t>(second, std::max(std::ssize(second), kRoom));
      if (StreamHandle const to = runner_.Issue()) {
        static_cast<emulator::Stream*>(to)->Enqueue([=, this] {
          for (int i = 0; i < 3; ++i) sums_[i] += a[i] * b[i];
        });
      }
      runner_.EndRecorded();
    };
  };
  ASSERT_TRUE(runner_.Record(1, step({1, 1, 1}, {1, 1, 1})).ok());
  for (const uint64_t key : {1, 0}) {
    const std::vector<int32_t> before(sums_, sums_ + 3);
    const int64_t copies = runtime_.copies_to_device(), bytes = runtime_.bytes_to_device();
    ASSERT_TRUE(runner_.Run(key, step({1, 2, 3}, {10, 20, 30})).ok());
    EXPECT_THAT(std::vector<int32_t>(sums_, sums_ + 3),
                ElementsAre(before[0] + 10, before[1] + 40, before[2] + 90));
    EXPECT_EQ(runtime_.bytes_to_device() - bytes, 128);
    EXPECT_EQ(runtime_.copies_to_device() - copies, key == 1 ? 2 : 1) << "the gap is not copied";
  }
  EXPECT_TRUE(runner_.Run(1, step(std::vector<int32_t>(kRoom, 0), {1, 1, 1})).ok());
}

TEST_F(StepRunnerTest, LateInputsBeyondTheirRoomWaitAndAllocateNothing) {
  const auto step = [this] {
    runner_.ReserveLate(128, 64);
    for (int32_t i = 0; i < 5; ++i) {
      const StagedBytes place = runner_.PlaceLate(100);
      ASSERT_NE(place.host, nullptr);
      std::memcpy(place.host, &i, sizeof i);
      runner_.TrimLate(place, 64);
      StreamHandle const to = runner_.Issue();
      static_cast<emulator::Stream*>(to)->Enqueue(
          [this, i, place] { sums_[i] += *reinterpret_cast<const int32_t*>(place.device); });
    }
  };
  ASSERT_TRUE(runner_.Run(0, step).ok());
  const int64_t allocations = runtime_.allocations();
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(runner_.Run(0, step).ok());
  EXPECT_EQ(runtime_.allocations(), allocations);
  EXPECT_THAT(std::vector<int32_t>(sums_, sums_ + 5), ElementsAre(0, 5, 10, 15, 20));
}

TEST_F(StepRunnerTest, AStepThatDiffersFromItsRecordingFails) {
  ASSERT_TRUE(runner_.Record(2, Step({0, 0})).ok());
  EXPECT_THAT(runner_.Run(2, Step({1, 2, 3})).message(), HasSubstr("larger inputs"));
  EXPECT_THAT(runner_
                  .Run(2,
                       [&] {
                         Add({1}, {1});
                         Add({1}, {1});
                       })
                  .message(),
              HasSubstr("more inputs"));
  EXPECT_THAT(runner_.Run(2, [] {}).message(), HasSubstr("fewer inputs"));
  EXPECT_TRUE(runner_.Run(2, Step({1})).ok()) << "a failure is of its step alone";
  EXPECT_FALSE(runner_.Record(2, Step({0, 0})).ok()) << "the key is in use";
  runner_.DropGraphs();
  EXPECT_EQ(runtime_.graphs(), 0);
  const int64_t launches = runtime_.graph_launches();
  EXPECT_TRUE(runner_.Run(2, Step({1, 2, 3})).ok()) << "runs as it is called";
  EXPECT_EQ(runtime_.graph_launches(), launches);
  EXPECT_FALSE(runner_.Record(3, Step({0, 0})).ok());
}

TEST_F(StepRunnerTest, StepsUnderWayAreLostWithTheDeviceAndNotWithARefusal) {
  ASSERT_TRUE(runner_.Begin(0, Step({1})).ok());
  const Status refused = runner_.Begin(0, [&] { runner_.Fail(InvalidArgument("refused")); });
  EXPECT_EQ(refused.message(), "refused");
  EXPECT_TRUE(runner_.Finish().ok()) << "what was begun before is good";
  // A watchdog notices another rank's loss while a later step is issued: the collectives of the
  // earlier one were aborted, so that its results are garbage.
  ASSERT_TRUE(runner_.Begin(0, Step({1})).ok());
  read_.clear();
  EXPECT_FALSE(
      runner_.Begin(0, [&] { runner_.Fail({StatusCode::kDevice, "a rank is lost"}); }).ok());
  EXPECT_EQ(runner_.Finish().message(), "a rank is lost");
  EXPECT_TRUE(read_.empty());
}

TEST_F(StepRunnerTest, TheFirstFailureStaysAndWhatFollowsDoesNothing) {
  const Status status = runner_.Run(0, [&] {
    Add({1}, {0});
    runner_.Fail(InvalidArgument("first"));
    runner_.Fail(InvalidArgument("second"));
    Add({1}, {0});
    EXPECT_FALSE(runner_.Issuing());
  });
  EXPECT_EQ(status.message(), "first");
  EXPECT_EQ(sums_[0], 1);
  ASSERT_TRUE(runner_.Run(0, Step({1})).ok());
  EXPECT_THAT(read_, ElementsAre(2));
  // A kernel that fails is noticed by whoever waits, and gives no results.
  ASSERT_TRUE(runner_.Begin(0, Step({1})).ok());
  runtime_.FailWaits(700);
  const Status late = runner_.Finish();
  EXPECT_EQ(late.code(), StatusCode::kDevice);
  EXPECT_THAT(late.message(), HasSubstr("error 700"));
  EXPECT_THAT(read_, IsEmpty());
  runtime_.FailWaits(0);
}

// A collective whose peers are lost does not end: whoever gives its step up must not wait for it.
TEST(StepRunnerLoss, ADeviceThatStandsStillIsGivenUpAfterAFailure) {
  EmulatedRuntime runtime{EmulatedDevice{}};
  Arena arena(&runtime, {.block_bytes = 0});
  StepRunner runner(&runtime, &arena, 4096, std::chrono::milliseconds(20));
  ASSERT_TRUE(runner.Create().ok());
  ASSERT_TRUE(runner.Begin(0, [] {}).ok());
  ASSERT_TRUE(runner.Begin(0, [] {}).ok());
  runtime.StandStill(true);
  runner.Fail({StatusCode::kDevice, "a rank is lost"});
  const int64_t waits = runtime.waits();
  EXPECT_EQ(runner.Finish().message(), "a rank is lost");
  EXPECT_EQ(runner.Finish().message(), "a rank is lost");
  EXPECT_EQ(runtime.waits(), waits);
  EXPECT_THAT(runner.Begin(0, [] {}).message(), HasSubstr("does not end"));
  runtime.StandStill(false);
}

class CudaBackendTest : public ::testing::Test {
 protected:
  CudaBackendTest() {
    auto runtime =
        std::make_unique<EmulatedRuntime>(EmulatedDevice{.memory_bytes = 32 * kMebibyte});
    runtime_ = runtime.get();
    CudaBackendOptions options;
    options.threads = 3;
    options.memory.block_bytes = 0;
    options.staging_bytes = 4096;
    options.transfer_bytes = 1000;  // copies are cut
    backend_ = *CudaBackend::Create(std::move(runtime), options);
  }
  ~CudaBackendTest() override { EXPECT_THAT(runtime_->misuses(), IsEmpty()); }

  EmulatedRuntime* runtime_ = nullptr;
  std::unique_ptr<CudaBackend> backend_;
};

TEST_F(CudaBackendTest, SaysWhatItIs) {
  EXPECT_EQ(backend_->info().kernel_family, "cuda-mma-sm80");
  EXPECT_EQ(backend_->info().activation_type, FloatType::kF16);
  EXPECT_TRUE(backend_->info().asynchronous);
  EXPECT_FALSE(CudaBackend::Create(std::make_unique<EmulatedRuntime>(EmulatedDevice{}),
                                   {.activation_type = FloatType::kF32})
                   .ok());
}

TEST_F(CudaBackendTest, MemoryIsZeroedAndCopiesOfAnySizeArrive) {
  StatusOr<Buffer> buffer = backend_->Allocate(5000, "activations");
  ASSERT_TRUE(buffer.ok());
  std::vector<uint8_t> in(5000), out(5000, 1);
  backend_->CopyToHost(out.data(), buffer->data(), 5000);
  EXPECT_EQ(out, in);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint8_t>(i * 7);
  const std::vector<uint8_t> expected = in;
  backend_->CopyToDevice(buffer->data(), in.data(), 5000);
  in.assign(in.size(), 0);  // the caller's again
  backend_->CopyToHost(out.data(), buffer->data(), 5000);
  EXPECT_EQ(out, expected);
  const StatusOr<Buffer> refused = backend_->Allocate(64 * kMebibyte, "weights");
  EXPECT_EQ(refused.status().code(), StatusCode::kOutOfMemory);
  EXPECT_FALSE(backend_->Allocate(-1, "weights").ok());
}

TEST_F(CudaBackendTest, OperationsOutsideOfStepsRunBeforeTheyAreLookedAt) {
  Buffer table = *backend_->Allocate(4 * 8 * 4, "weights");
  Buffer out = *backend_->Allocate(2 * 8 * 2, "activations");
  std::vector<float> rows(32);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
  backend_->CopyToDevice(table.data(), rows.data(), 4 * 8 * 4);
  const std::vector<int32_t> ids = {3, 1};
  backend_->Embed({.table = {table.data(), FloatType::kF32, 0, 4, 8},
                   .token_ids = ids,
                   .sampled_ids = nullptr,
                   .out = {out.data(), FloatType::kF16, 2, 8, 8}});
  std::vector<uint16_t> halves(16);
  backend_->CopyToHost(halves.data(), out.data(), 32);
  EXPECT_EQ(halves[0], 0x4e00);  // 24
  EXPECT_EQ(halves[8], 0x4800);  // 8
  EXPECT_TRUE(backend_->Run(0, [] {}).ok());
}

// A backend made by one thread and asked by another, as a rank is started and run.
TEST_F(CudaBackendTest, AnyThreadMayBeItsUser) {
  std::thread([this] { EXPECT_GT(backend_->AvailableMemory(), 0); }).join();
  std::thread([this] {
    static_cast<void>(backend_->stream());
    int64_t free = 0, total = 0;
    EXPECT_EQ(runtime_->MemoryInfo(&free, &total), 0) << "it can launch work between steps";
  }).join();
}

TEST(EmulatedRuntimeTest, NoticesAThreadThatForgotItsDevice) {
  EmulatedRuntime first{EmulatedDevice{}};
  EmulatedRuntime second{EmulatedDevice{}};  // is the thread's now
  void* memory = nullptr;
  EXPECT_EQ(first.Allocate(16, &memory), EmulatedRuntime::kMisuse);
  EXPECT_THAT(first.misuses(), ElementsAre(HasSubstr("an allocation by a thread")));
  EXPECT_EQ(first.MakeCurrent(), 0);
  EXPECT_EQ(first.Allocate(16, &memory), 0);
  EXPECT_EQ(first.Free(memory), 0);
}

TEST_F(CudaBackendTest, MultipliesByFullPrecisionWeights) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  LinearWeight weight;
  weight.n = 2;
  weight.k = 3;
  weight.floats.resize(values.size() * sizeof(float));
  std::memcpy(weight.floats.data(), values.data(), weight.floats.size());
  weight.bias = {10, 20};
  const auto packed = backend_->Pack(weight);
  ASSERT_TRUE(packed.ok());
  EXPECT_EQ((*packed)->bytes, 6 * 4 + 2 * 4);
  const std::vector<float> x = {1, 0, -1, 2, 1, 0};
  const Buffer in = *backend_->Allocate(24, "x"), out = *backend_->Allocate(16, "out");
  backend_->CopyToDevice(in.data(), x.data(), 24);
  const Status status = backend_->Run(0, [&] {
    ops::Linear(*backend_, {.weight = packed->get(),
                            .x = {.rows = 2, .cols = 3, .f32 = in.as<float>(), .f32_stride = 3},
                            .out = FloatMatrix(out.as<float>(), 2, 2, 2)});
  });
  ASSERT_TRUE(status.ok()) << status.message();
  std::vector<float> sums(4);
  backend_->CopyToHost(sums.data(), out.data(), 16);
  EXPECT_THAT(sums, ElementsAre(8, 18, 14, 33));
}

}  // namespace
}  // namespace qserve::kernels::cuda
