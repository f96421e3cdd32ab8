#include "bench/workload.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/philox.h"

namespace qserve::bench {
namespace {

// Different uses of a seed draw different numbers.
enum class Use : uint32_t { kPrompt = 1, kArrival = 2 };

PhiloxBlock Draw(uint64_t seed, Use use, int64_t a, int64_t b) {
  const PhiloxBlock counter = {static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32),
                               static_cast<uint32_t>(b), static_cast<uint32_t>(use)};
  return Philox4x32(counter, {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

}  // namespace

std::vector<int32_t> RandomPrompt(uint64_t seed, int64_t index, int64_t length,
                                  int64_t vocabulary) {
  QSERVE_CHECK(length >= 0 && vocabulary >= 1);
  std::vector<int32_t> ids(static_cast<size_t>(length));
  for (int64_t i = 0; i < length; ++i) {
    const PhiloxBlock block = Draw(seed, Use::kPrompt, index, i / 4);
    const uint64_t random = block[static_cast<size_t>(i % 4)];
    // The upper half of the product: no modulo bias worth speaking of.
    ids[static_cast<size_t>(i)] =
        static_cast<int32_t>((random * static_cast<uint64_t>(vocabulary)) >> 32);
  }
  return ids;
}

std::vector<double> PoissonArrivals(uint64_t seed, int64_t count, double rate) {
  QSERVE_CHECK(rate > 0);
  std::vector<double> arrivals;
  arrivals.reserve(static_cast<size_t>(std::max<int64_t>(count, 0)));
  double at = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t random = Draw(seed, Use::kArrival, i, 0)[0];
    at -= std::log(static_cast<double>(UniformOpen(random))) / rate;
    arrivals.push_back(at);
  }
  return arrivals;
}

}  // namespace qserve::bench
