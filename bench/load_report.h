// What a load's records say: latencies, throughput, errors; as a table and as JSON. Pure.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "bench/load.h"
#include "bench/statistics.h"
#include "nlohmann/json.hpp"

namespace qserve::bench {

// Seconds. Only complete answers count, but for errors.
struct LoadReport {
  int64_t completed = 0;
  std::map<std::string, int64_t> errors;  // by reason
  Summary time_to_first_token;
  Summary time_per_output_token;  // after the first, of answers with several tokens
  Summary end_to_end;
  double duration = 0;  // from the first request's due time to the last token
  double requests_per_second = 0;
  double output_tokens_per_second = 0;
  double prompt_tokens_per_second = 0;
};

LoadReport Evaluate(const std::vector<RequestRecord>& records, int32_t prompt_length);

nlohmann::ordered_json ToJson(const LoadOptions& options, const LoadReport& report);
std::string ToText(const LoadOptions& options, const LoadReport& report);

}  // namespace qserve::bench
