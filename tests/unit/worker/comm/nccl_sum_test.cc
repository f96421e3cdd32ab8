// What GPUs exchange by NCCL, over a fake one and emulated streams: sums to the bit of the serial
// sum in rank order, columns, ids, and work that is recorded and replayed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "common/philox.h"
#include "tests/unit/worker/comm/nccl_group.h"
#include "worker/comm/matrix_copy.h"

namespace qserve::worker::comm {
namespace {

using kernels::FloatType;
using ::testing::Each;

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
           {1, 1}, {1, 7}, {3, 5}, {8, 64}, {5, 257}, {24, 512}}) {
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
    for (const int64_t cols : {96, 115}) {
      const int64_t rows = 6;
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
  const int64_t rows = 5, cols = 253, stride = 256;
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
  const int64_t rows = 40, cols = 61, stride = cols * size() + 4;
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
        for (const int64_t c : {int64_t{0}, int64_t{30}, cols - 1}) {
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
  const int64_t count = 768;
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
                                            ::testing::Values(int64_t{0}, int64_t{1} << 11,
                                                              kAlways)),
                         NameOf);

}  // namespace
}  // namespace qserve::worker::comm
