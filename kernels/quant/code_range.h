// Smallest and largest of some stored codes, sixteen at a time where the compiler can: what keeps a
// group's codes in int8 is checked over every weight at load. Used by qserve_pack.cc and
// linear_weight.cc. Any thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace qserve::kernels {

struct CodeRange {
  uint8_t low = 255;
  uint8_t high = 0;
};

inline CodeRange RangeOf(const uint8_t* codes, int64_t count) {
  CodeRange range;
  uint8_t low = range.low, high = range.high;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, codes[i]);
    high = std::max(high, codes[i]);
  }
  return {low, high};
}

}  // namespace qserve::kernels
