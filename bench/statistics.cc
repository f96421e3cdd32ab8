#include "bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/check.h"

namespace qserve::bench {
namespace {

double SortedPercentile(const std::vector<double>& sorted, double percent) {
  QSERVE_CHECK(percent >= 0 && percent <= 100);
  if (sorted.empty()) return 0;
  const double rank = std::ceil(percent / 100 * static_cast<double>(sorted.size()));
  return sorted[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

}  // namespace

double Percentile(std::vector<double> values, double percent) {
  std::sort(values.begin(), values.end());
  return SortedPercentile(values, percent);
}

Summary Summarize(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return {.mean = std::accumulate(values.begin(), values.end(), 0.0) /
                  static_cast<double>(values.size()),
          .min = values.front(),
          .p50 = SortedPercentile(values, 50),
          .p90 = SortedPercentile(values, 90),
          .p99 = SortedPercentile(values, 99),
          .max = values.back()};
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace qserve::bench
