// The linear operation's cases: weights and activations made from a seed. One table for the parity
// test and the benchmark.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace qserve::kernels::testing {

struct LinearCase {
  WeightFormat format = WeightFormat::kW4Group128;
  int64_t n = 0;
  int64_t k = 0;
  int64_t m = 0;
  int64_t lead = 0;
  bool bias = false;
  bool extreme =
      false;  // codes and activations at the ends of their ranges, where narrow sums would overflow
  std::string Name() const;
};

const char* FormatName(WeightFormat format);

// Ragged rows, columns, leads and batches of every format.
const std::vector<LinearCase>& LinearCases();

// A valid weight of the case's shape.
LinearWeight MakeWeight(const LinearCase& c, uint64_t seed);

// Activations as a producer would leave them: int8 rows behind zeros, scales, row sums; or fp32
// rows.
struct HostActivation {
  std::vector<float> f32;
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<int32_t> row_sum;
  Activation view;
};
HostActivation MakeActivation(const LinearCase& c, uint64_t seed);

}  // namespace qserve::kernels::testing
