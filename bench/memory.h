// The memory of this process as the kernel counts it: how much there was at most, and how much lies
// in huge pages. Called by qserve-bench and tests; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "nlohmann/json.hpp"

namespace qserve::bench {

// Bytes; nothing where this kernel does not say.
struct ProcessMemory {
  std::optional<int64_t> peak;            // VmHWM: the most there ever was, mapped files included
  std::optional<int64_t> anonymous;       // RssAnon: now, without mapped files
  std::optional<int64_t> anonymous_huge;  // AnonHugePages: what of it lies in 2 MiB pages
};

// From the texts of /proc/self/status and /proc/self/smaps_rollup; pure.
ProcessMemory ParseProcessMemory(std::string_view status, std::string_view smaps_rollup);
ProcessMemory ReadProcessMemory();

// Names with "_bytes"; what is not known is null.
nlohmann::ordered_json ToJson(const ProcessMemory& memory);

}  // namespace qserve::bench
