// What is asked for and when: prompts and arrival times as functions of a seed, so that two runs
// face the same load. Pure; any thread.
#pragma once

#include <cstdint>
#include <vector>

namespace qserve::bench {

// `length` ids of [0, vocabulary), different for each `index` from the first tokens on: no prompt
// profits from another one in the prefix cache. Preconditions: length >= 0, vocabulary >= 1.
std::vector<int32_t> RandomPrompt(uint64_t seed, int64_t index, int64_t length, int64_t vocabulary);

// Seconds from the start at which `count` requests arrive: a Poisson process of `rate` a second
// (independent exponential gaps). Precondition: rate > 0.
std::vector<double> PoissonArrivals(uint64_t seed, int64_t count, double rate);

}  // namespace qserve::bench
