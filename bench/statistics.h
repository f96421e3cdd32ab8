// Order statistics of measurements. Pure; any thread.
#pragma once

#include <vector>

namespace qserve::bench {

// The smallest value that at least `percent` % of `values` do not exceed (nearest rank: always a
// value that was measured). 0 for no values. Precondition: percent in [0, 100].
double Percentile(std::vector<double> values, double percent);

struct Summary {
  double mean = 0;
  double min = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double max = 0;
};
// All zero for no values.
Summary Summarize(std::vector<double> values);

// The middle value, or the mean of the two middle ones; 0 for none.
double Median(std::vector<double> values);

}  // namespace qserve::bench
