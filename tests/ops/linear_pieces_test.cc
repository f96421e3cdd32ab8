// Weights packed from pieces that the packing threads read, against the same weights packed whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/workspace.h"
#include "tests/ops/linear_cases.h"

namespace qserve::kernels::testing {
namespace {

LinearWeight RowsOf(const LinearWeight& w, int64_t begin, int64_t end) {
  LinearWeight piece = w;
  piece.n = end - begin;
  const auto cut = [&](auto& vector) {
    const auto each = static_cast<int64_t>(vector.size()) / w.n;
    vector.erase(vector.begin() + end * each, vector.end());
    vector.erase(vector.begin(), vector.begin() + begin * each);
  };
  for (auto* bytes : {&piece.floats, &piece.codes, &piece.group_scale}) cut(*bytes);
  for (auto* floats : {&piece.scale, &piece.scaled_zero, &piece.bias}) cut(*floats);
  cut(piece.group_offset);
  return piece;
}

using Packed = StatusOr<std::unique_ptr<PackedLinear>>;

std::vector<float> Multiply(const LinearCase& c, int threads,
                            const std::function<Packed(cpu::ThreadPool&)>& pack) {
  cpu::ThreadPool pool(threads);
  cpu::Workspace workspace(threads);
  cpu::OpContext context{pool, workspace};
  const HostActivation x = MakeActivation(c, 7);
  std::vector<float> out(static_cast<size_t>(c.m * c.n));
  const Packed packed = pack(pool);
  EXPECT_TRUE(packed.ok()) << packed.status().message();
  if (!packed.ok()) return {};
  const Status status = cpu::emulated::LinearOf8Lanes(
      context, {.weight = packed->get(), .x = x.view, .out = {out.data(), c.m, c.n, c.n}});
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

void ExpectAlike(const LinearCase& c, const LinearWeight& w, const RowReader& read) {
  const std::vector<float> whole =
      Multiply(c, 2, [&](cpu::ThreadPool& pool) { return cpu::PackPanels(pool, w); });
  for (const int threads : {1, 3}) {
    const std::vector<float> pieces = Multiply(
        c, threads, [&](cpu::ThreadPool& pool) { return cpu::PackPanelPieces(pool, c.n, read); });
    ASSERT_EQ(pieces.size(), whole.size());
    ASSERT_TRUE(whole.empty() ||
                std::memcmp(pieces.data(), whole.data(), whole.size() * sizeof(float)) == 0)
        << c.Name() << " threads=" << threads;
  }
}

TEST(LinearPieces, MultiplyAsTheWholeDoes) {
  for (const LinearCase& c : LinearCases()) {
    if (c.format == WeightFormat::kFloat) continue;
    const LinearWeight w = MakeWeight(c, 5);
    ExpectAlike(c, w, [&](int64_t begin, int64_t end) { return RowsOf(w, begin, end); });
  }
}

// Wide enough that no thread reads its share at once.
TEST(LinearPieces, AreOfBoundedSizeAndCoverEveryRowOnce) {
  const LinearCase c{.format = WeightFormat::kW4Group128, .n = 419, .k = 8192, .m = 2};
  const LinearWeight w = MakeWeight(c, 5);
  std::vector<std::atomic<int>> seen(419);
  std::atomic<int64_t> largest = 0;
  const auto read = [&](int64_t begin, int64_t end) {
    EXPECT_EQ(begin % 32, 0);
    for (int64_t row = begin; row < end; ++row) ++seen[static_cast<size_t>(row)];
    int64_t old = largest;
    while (old < end - begin && !largest.compare_exchange_weak(old, end - begin)) {
    }
    return RowsOf(w, begin, end);
  };
  cpu::ThreadPool pool(2);
  ASSERT_TRUE(cpu::PackPanelPieces(pool, c.n, read).ok());
  for (const auto& count : seen) EXPECT_EQ(count, 1);
  EXPECT_LE(largest, 64);
  ExpectAlike(c, w, read);
}

// q may have a bias beside a k without one.
TEST(LinearPieces, WithoutABiasCountAsZero) {
  const LinearCase c{.format = WeightFormat::kW8, .n = 160, .k = 128, .m = 3, .bias = true};
  LinearWeight w = MakeWeight(c, 5);
  std::fill(w.bias.begin() + 32, w.bias.begin() + 96, 0.0f);
  ExpectAlike(c, w, [&](int64_t begin, int64_t end) -> StatusOr<LinearWeight> {
    LinearWeight piece = RowsOf(w, begin, end);
    if (begin >= 32 && end <= 96) piece.bias.clear();
    return piece;
  });
}

TEST(LinearPieces, AFailureOfOneIsTheWholes) {
  const LinearCase c{.format = WeightFormat::kW4Group128, .n = 416, .k = 8192, .m = 1};
  const LinearWeight w = MakeWeight(c, 5);
  const auto backend = cpu::CreateCpuBackend(2, "auto");
  ASSERT_TRUE(backend.ok());
  for (const int64_t bad : {int64_t{0}, int64_t{32}, int64_t{415}}) {
    const auto failing = [&](int64_t begin, int64_t end) -> StatusOr<LinearWeight> {
      if (begin <= bad && bad < end) return Unsupported("unreadable");
      return RowsOf(w, begin, end);
    };
    const Packed unreadable = (*backend)->PackPieces(c.n, failing);
    ASSERT_FALSE(unreadable.ok());
    EXPECT_EQ(unreadable.status().message(), "unreadable");
    const Packed invalid = (*backend)->PackPieces(c.n, [&](int64_t begin, int64_t end) {
      LinearWeight piece = RowsOf(w, begin, end);
      if (begin <= bad && bad < end) piece.codes[0] = 16;
      return StatusOr<LinearWeight>(piece);
    });
    EXPECT_FALSE(invalid.ok());
  }
  const Packed other = (*backend)->PackPieces(c.n, [&](int64_t begin, int64_t end) {
    LinearWeight piece = RowsOf(w, begin, end);
    piece.lead = begin == 0 ? 0 : 32;
    return StatusOr<LinearWeight>(piece);
  });
  EXPECT_FALSE(other.ok());
}

}  // namespace
}  // namespace qserve::kernels::testing
