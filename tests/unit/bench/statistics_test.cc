// Order statistics, workloads and reports: exact where arithmetic is, statistical where chance is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "bench/load_report.h"
#include "bench/statistics.h"
#include "bench/workload.h"

namespace qserve::bench {
namespace {

std::vector<double> OneTo(int n) {
  std::vector<double> values(static_cast<size_t>(n));
  std::iota(values.rbegin(), values.rend(), 1.0);  // descending: nothing may rely on order
  return values;
}

TEST(Statistics, PercentilesAreNearestRanks) {
  EXPECT_EQ(Percentile(OneTo(100), 50), 50);
  EXPECT_EQ(Percentile(OneTo(100), 99), 99);
  EXPECT_EQ(Percentile(OneTo(100), 100), 100);
  EXPECT_EQ(Percentile(OneTo(100), 0), 1);
  EXPECT_EQ(Percentile(OneTo(10), 99), 10);
  EXPECT_EQ(Percentile(OneTo(10), 90), 9);
  EXPECT_EQ(Percentile({7}, 50), 7);
  EXPECT_EQ(Percentile({}, 50), 0);
}

TEST(Statistics, SummaryAgreesWithItsParts) {
  const Summary summary = Summarize(OneTo(200));
  EXPECT_DOUBLE_EQ(summary.mean, 100.5);
  EXPECT_EQ(summary.min, 1);
  EXPECT_EQ(summary.p50, 100);
  EXPECT_EQ(summary.p90, 180);
  EXPECT_EQ(summary.p99, 198);
  EXPECT_EQ(summary.max, 200);
  EXPECT_EQ(Summarize({}).max, 0);
}

TEST(Statistics, MedianOfEvenCountsIsBetween) {
  EXPECT_EQ(Median({3, 1, 2}), 2);
  EXPECT_EQ(Median({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(Median({}), 0);
}

TEST(Workload, PromptsAreReproducibleWithinTheVocabularyAndDifferent) {
  const auto prompt = RandomPrompt(7, 3, 1000, 50);
  EXPECT_EQ(prompt, RandomPrompt(7, 3, 1000, 50));
  EXPECT_NE(prompt, RandomPrompt(8, 3, 1000, 50));
  std::set<int32_t> seen(prompt.begin(), prompt.end());
  EXPECT_EQ(*seen.begin(), 0);
  EXPECT_EQ(*seen.rbegin(), 49);
  EXPECT_EQ(seen.size(), 50u);  // each of 50 ids is missed by 1000 draws with probability 1e-9
  // A prefix-cache block has 64 tokens: the first ones must already tell prompts apart.
  std::set<std::vector<int32_t>> beginnings;
  for (int64_t i = -100; i < 100; ++i) beginnings.insert(RandomPrompt(7, i, 8, 1000));
  EXPECT_EQ(beginnings.size(), 200u);
}

TEST(Workload, ArrivalsArePoisson) {
  constexpr int kCount = 20000;
  constexpr double kRate = 8;
  const auto arrivals = PoissonArrivals(1, kCount, kRate);
  EXPECT_EQ(arrivals, PoissonArrivals(1, kCount, kRate));
  EXPECT_NE(arrivals, PoissonArrivals(2, kCount, kRate));
  EXPECT_TRUE(std::is_sorted(arrivals.begin(), arrivals.end()));
  EXPECT_GT(arrivals.front(), 0);
  // Gaps of an exponential distribution: mean and deviation 1 / rate, e^-1 of them above the mean.
  double sum = 0, squares = 0;
  int above = 0;
  for (size_t i = 0; i < arrivals.size(); ++i) {
    const double gap = arrivals[i] - (i == 0 ? 0 : arrivals[i - 1]);
    sum += gap;
    squares += gap * gap;
    above += gap > 1 / kRate ? 1 : 0;
  }
  const double mean = sum / kCount;
  EXPECT_NEAR(mean * kRate, 1, 0.03);  // 4 standard errors
  EXPECT_NEAR(std::sqrt(squares / kCount - mean * mean) * kRate, 1, 0.05);
  EXPECT_NEAR(static_cast<double>(above) / kCount, std::exp(-1), 0.015);
}

TEST(LoadReport, CountsCompleteAnswersOnly) {
  const std::vector<RequestRecord> records = {
      {.due = 1, .first_token = 2, .end = 4, .tokens = 5, .error = ""},
      {.due = 2,
       .first_token = 5,
       .end = 5,
       .tokens = 1,
       .error = ""},  // has no time between tokens
      {.due = 3, .first_token = 4, .end = 100, .tokens = 7, .error = "QUEUE_FULL"}};
  const LoadReport report = Evaluate(records, 10);
  EXPECT_EQ(report.completed, 2);
  EXPECT_EQ(report.errors.at("QUEUE_FULL"), 1);
  EXPECT_EQ(report.time_to_first_token.min, 1);
  EXPECT_EQ(report.time_to_first_token.max, 3);
  EXPECT_EQ(report.time_per_output_token.mean, 0.5);
  EXPECT_EQ(report.end_to_end.mean, 3);
  EXPECT_EQ(report.duration, 4);
  EXPECT_EQ(report.output_tokens_per_second, 1.5);
  EXPECT_EQ(report.requests_per_second, 0.5);
  EXPECT_EQ(report.prompt_tokens_per_second, 5);
}

TEST(LoadReport, OfNothingIsZero) {
  const LoadReport report = Evaluate({{.due = 1, .error = "UNAVAILABLE"}}, 10);
  EXPECT_EQ(report.completed, 0);
  EXPECT_EQ(report.requests_per_second, 0);
  EXPECT_EQ(ToJson(LoadOptions{}, report)["errors"]["UNAVAILABLE"], 1);
}

}  // namespace
}  // namespace qserve::bench
