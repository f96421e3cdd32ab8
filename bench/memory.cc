#include "bench/memory.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <string>

namespace qserve::bench {
namespace {

// The number of the line "key:   number kB".
std::optional<int64_t> KibibytesOf(std::string_view text, std::string_view key) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!line.starts_with(key) || line.substr(key.size(), 1) != ":") continue;
    line.remove_prefix(key.size() + 1);
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    int64_t kibibytes = 0;
    const auto [stop, error] = std::from_chars(line.data(), line.data() + line.size(), kibibytes);
    const bool whole = std::string_view(stop, line.data() + line.size()) == " kB";
    if (error != std::errc() || !whole || kibibytes < 0) return std::nullopt;
    return kibibytes * 1024;
  }
  return std::nullopt;
}

std::string Contents(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

nlohmann::ordered_json OrNull(std::optional<int64_t> value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

}  // namespace

ProcessMemory ParseProcessMemory(std::string_view status, std::string_view smaps_rollup) {
  return {.peak = KibibytesOf(status, "VmHWM"),
          .anonymous = KibibytesOf(status, "RssAnon"),
          .anonymous_huge = KibibytesOf(smaps_rollup, "AnonHugePages")};
}

ProcessMemory ReadProcessMemory() {
  return ParseProcessMemory(Contents("/proc/self/status"), Contents("/proc/self/smaps_rollup"));
}

nlohmann::ordered_json ToJson(const ProcessMemory& memory) {
  return {{"peak_bytes", OrNull(memory.peak)},
          {"anonymous_bytes", OrNull(memory.anonymous)},
          {"anonymous_huge_bytes", OrNull(memory.anonymous_huge)}};
}

}  // namespace qserve::bench
