// Where and from what a measurement was made: part of every report. Any thread.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace qserve::bench {

// Processor, cores this process may use, memory, program version and commit, time of day (UTC).
// What cannot be found out is left out.
nlohmann::ordered_json DescribeRun(int argc, const char* const* argv);

}  // namespace qserve::bench
