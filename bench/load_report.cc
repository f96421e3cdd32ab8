#include "bench/load_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace qserve::bench {
namespace {

using Json = nlohmann::ordered_json;

Json ToJson(const Summary& summary) {
  return {{"mean", summary.mean}, {"min", summary.min}, {"p50", summary.p50},
          {"p90", summary.p90},   {"p99", summary.p99}, {"max", summary.max}};
}

std::string Row(const char* name, const Summary& s) {
  return fmt::format("{:28} {:9.2f} {:9.2f} {:9.2f} {:9.2f} {:9.2f}\n", name, s.mean * 1e3,
                     s.p50 * 1e3, s.p90 * 1e3, s.p99 * 1e3, s.max * 1e3);
}

}  // namespace

LoadReport Evaluate(const std::vector<RequestRecord>& records, int32_t prompt_length) {
  LoadReport report;
  std::vector<double> first, per_token, whole;
  double begin = std::numeric_limits<double>::infinity();
  double end = 0;
  int64_t tokens = 0;
  for (const RequestRecord& record : records) {
    begin = std::min(begin, record.due);
    if (!record.error.empty()) {
      ++report.errors[record.error];
      continue;
    }
    ++report.completed;
    tokens += record.tokens;
    end = std::max(end, record.end);
    first.push_back(record.first_token - record.due);
    whole.push_back(record.end - record.due);
    if (record.tokens > 1) {
      per_token.push_back((record.end - record.first_token) /
                          static_cast<double>(record.tokens - 1));
    }
  }
  report.time_to_first_token = Summarize(std::move(first));
  report.time_per_output_token = Summarize(std::move(per_token));
  report.end_to_end = Summarize(std::move(whole));
  if (report.completed == 0 || end <= begin) return report;
  report.duration = end - begin;
  const auto completed = static_cast<double>(report.completed);
  report.requests_per_second = completed / report.duration;
  report.output_tokens_per_second = static_cast<double>(tokens) / report.duration;
  report.prompt_tokens_per_second = completed * prompt_length / report.duration;
  return report;
}

Json ToJson(const LoadOptions& options, const LoadReport& report) {
  Json json = {{"benchmark", "serve"},
               {"model", options.model},
               {"loop", options.rate > 0 ? "open" : "closed"},
               {"requests", options.requests},
               {"concurrency", options.concurrency}};
  if (options.rate > 0) json["rate"] = options.rate;
  json["prompt_length"] = options.prompt_length;
  json["output_length"] = options.output_length;
  json["seed"] = options.seed;
  json["completed"] = report.completed;
  json["errors"] = report.errors;
  json["duration_seconds"] = report.duration;
  json["requests_per_second"] = report.requests_per_second;
  json["output_tokens_per_second"] = report.output_tokens_per_second;
  json["prompt_tokens_per_second"] = report.prompt_tokens_per_second;
  json["time_to_first_token_seconds"] = ToJson(report.time_to_first_token);
  json["time_per_output_token_seconds"] = ToJson(report.time_per_output_token);
  json["end_to_end_seconds"] = ToJson(report.end_to_end);
  return json;
}

std::string ToText(const LoadOptions& options, const LoadReport& report) {
  const std::string loop = options.rate > 0
                               ? fmt::format("open loop, {} a second, at most {} at a time",
                                             options.rate, options.concurrency)
                               : fmt::format("closed loop, {} at a time", options.concurrency);
  std::string text =
      fmt::format("{} requests ({}), {} prompt and {} output tokens each\n", options.requests, loop,
                  options.prompt_length, options.output_length);
  text += fmt::format("{} completed in {:.2f} s\n", report.completed, report.duration);
  for (const auto& [reason, count] : report.errors)
    text += fmt::format("{} ended with {}\n", count, reason);
  text += fmt::format("\n{:28} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "milliseconds", "mean", "p50",
                      "p90", "p99", "max");
  text += Row("time to first token", report.time_to_first_token);
  text += Row("time per output token", report.time_per_output_token);
  text += Row("end to end", report.end_to_end);
  text += fmt::format("\n{:28} {:9.2f} a second\n", "requests", report.requests_per_second);
  text += fmt::format("{:28} {:9.1f} a second\n", "output tokens", report.output_tokens_per_second);
  text += fmt::format("{:28} {:9.1f} a second\n", "prompt tokens", report.prompt_tokens_per_second);
  return text;
}

}  // namespace qserve::bench
