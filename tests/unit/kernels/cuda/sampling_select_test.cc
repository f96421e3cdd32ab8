// The cut of a row, exactly: a kernel that selects and nothing else, against sorting on the host.
// Draws alone would hardly notice a cut that is off by one id.
#include "kernels/cuda/device/sampling_select.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/device/kernel.h"
#include "tests/ops/float_cases.h"

namespace qserve::kernels::cuda {
namespace {

using ::qserve::kernels::testing::RandomFloats;

struct SelectAlone {
  struct Params {
    LogitRow row;
    float max = 0;
    Cut within;
    Goal goal;
    Selection* out = nullptr;
  };
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static void Run(const Params& p) {
    auto& shared = *reinterpret_cast<SelectShared*>(SharedMemory());
    const Selection selection = Select<kThreads>(p.row, p.max, p.within, p.goal, shared);
    if (ThreadId() == 0) *p.out = selection;
  }
};

// (value, id) of the row, most likely first, without -infinity and what `within` leaves out.
struct Likely {
  float value = 0;
  int32_t id = 0;
};
std::vector<Likely> Sorted(const std::vector<float>& row, const Cut& within) {
  std::vector<Likely> all;
  for (size_t i = 0; i < row.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if (row[i] > -INFINITY && Passes(within, KeyOf(row[i]), id)) all.push_back({row[i], id});
  }
  std::sort(all.begin(), all.end(), [](const Likely& a, const Likely& b) {
    return a.value != b.value ? a.value > b.value : a.id < b.id;
  });
  return all;
}

Selection OnDevice(const std::vector<float>& row, const Cut& within, const Goal& goal) {
  Selection selection;
  emulator::Stream stream(row.size());
  const LogitRow view = {.logits = row.data(), .count = static_cast<int>(row.size())};
  const float max = *std::max_element(row.begin(), row.end());
  EXPECT_EQ(Launch<SelectAlone>(&stream, {}, static_cast<int64_t>(sizeof(SelectShared)),
                                {view, max, within, goal, &selection}),
            0);
  stream.Synchronize();
  return selection;
}

void ExpectCut(const Selection& got, const Likely& expected, const std::string& what) {
  EXPECT_EQ(got.cut.id, expected.id) << what;
  EXPECT_EQ(got.cut.key, KeyOf(expected.value)) << what;
}

void CheckCounts(const std::vector<float>& row, const Cut& within, const std::string& name) {
  const std::vector<Likely> sorted = Sorted(row, within);
  const auto all = static_cast<uint32_t>(sorted.size());
  for (const uint32_t count : {1u, 2u, 20u, all / 3, all / 2, all - 1, all, all + 7}) {
    Goal goal;
    goal.wanted.count = count;
    const size_t place = std::clamp(count, 1u, all) - 1;
    if (count == 0) continue;
    const Selection got = OnDevice(row, within, goal);
    ExpectCut(got, sorted[place], name + ", " + std::to_string(count));
    if (got.listed) {
      EXPECT_EQ(static_cast<size_t>(got.place), place);
    }
  }
}

// Sums in extended precision, in order. Where a share falls within 1e-10 of an id's end, either
// neighbour would do; no case here comes that near.
void CheckShares(const std::vector<float>& row, const Cut& within, const std::string& name) {
  const std::vector<Likely> sorted = Sorted(row, within);
  const float max = *std::max_element(row.begin(), row.end());
  long double total = 0;
  for (const Likely& x : sorted) total += static_cast<long double>(Exponential(x.value - max));
  for (const float share : {1e-6f, 0.1f, 0.37f, 0.5123f, 0.9f, 0.98765f, 0.9999f}) {
    Goal goal;
    goal.by_mass = true;
    goal.share = share;
    const long double wanted = total * static_cast<long double>(share);
    long double sum = 0;
    size_t place = 0;
    while (place < sorted.size()) {
      sum += static_cast<long double>(Exponential(sorted[place].value - max));
      if (sum >= wanted) break;
      ++place;
    }
    ASSERT_LT(place, sorted.size());
    ASSERT_GT(std::fabs(static_cast<double>((sum - wanted) / total)), 1e-10)
        << name << " " << share;
    ExpectCut(OnDevice(row, within, goal), sorted[place], name + ", " + std::to_string(share));
  }
}

void Check(const std::vector<float>& row, const std::string& name) {
  CheckCounts(row, {}, name);
  CheckShares(row, {}, name);
  const std::vector<Likely> sorted = Sorted(row, {});
  const Likely& middle = sorted[sorted.size() * 2 / 3];
  CheckShares(row, {.key = KeyOf(middle.value), .id = middle.id}, name + ", within");
}

TEST(SamplingSelect, CutsUsualRowsExactly) {
  for (const float deviation : {0.3f, 2.5f, 8.0f}) {
    Check(RandomFloats(1003, 3, deviation), "deviation " + std::to_string(deviation));
  }
  std::vector<float> row = RandomFloats(40, 5, 2.0f);
  row[3] = row[17] = -INFINITY;
  row[4] = row[5] = row[30];
  Check(row, "short");
}

TEST(SamplingSelect, CutsCrowdsExactly) {
  Check(RandomFloats(6000, 7, 0.001f), "one bin, many values");
  Check(RandomFloats(5001, 8, 1e-6f), "one bin, neighbouring values around zero");
  std::vector<float> row = RandomFloats(5001, 8, 1e-5f);
  for (float& x : row) x += 20.0f;
  Check(row, "few values, many ids each");
  for (float& x : row) x *= 1e6f;
  Check(row, "all far from the largest");
  std::vector<float> equal(4099, -3.25f);
  Check(equal, "all equal");
  for (size_t i = 0; i < equal.size(); i += 3) equal[i] = i % 2 == 0 ? 0.0f : -0.0f;
  Check(equal, "two values, and two zeros");
}

// Every key of a range has an id, so that bounds that are off by one leave one out.
TEST(SamplingSelect, CutsBetweenNeighbouringKeys) {
  std::vector<float> row(5000);
  for (size_t i = 0; i < row.size(); ++i) row[i] = ValueOf(KeyOf(1.0f) + static_cast<uint32_t>(i));
  for (uint32_t count = 2500; count < 2570; ++count) {
    Goal goal;
    goal.wanted.count = count;
    const size_t id = row.size() - count;
    ExpectCut(OnDevice(row, {}, goal), {row[id], static_cast<int32_t>(id)}, std::to_string(count));
  }
}

}  // namespace
}  // namespace qserve::kernels::cuda
