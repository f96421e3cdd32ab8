#include "bench/machine.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <ctime>
#include <fstream>
#include <string_view>

#include "bench/commit.h"
#include "common/cli/version.h"

namespace qserve::bench {
namespace {

// The value of the first line "key : value" of a file in /proc; empty if there is none.
std::string ProcValue(const char* path, std::string_view key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(':');
    if (!line.starts_with(key) || colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

int UsableCores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  return ::sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 0;
}

std::string Now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  char text[32];
  ::gmtime_r(&now, &utc);
  return std::string(text, std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc));
}

}  // namespace

nlohmann::ordered_json DescribeRun(int argc, const char* const* argv) {
  std::string command;
  for (int i = 0; i < argc; ++i) command += (i == 0 ? "" : " ") + std::string(argv[i]);
  nlohmann::ordered_json run = {{"command", command}, {"time", Now()}};
  run["version"] = std::string(cli::kVersion);
  if (!kCommit.empty()) run["commit"] = std::string(kCommit);
  const std::string cpu = ProcValue("/proc/cpuinfo", "model name");
  if (!cpu.empty()) run["machine"]["cpu"] = cpu;
  run["machine"]["cores"] = UsableCores();
  const std::string memory = ProcValue("/proc/meminfo", "MemTotal");
  if (!memory.empty()) run["machine"]["memory"] = memory;
  return run;
}

}  // namespace qserve::bench
