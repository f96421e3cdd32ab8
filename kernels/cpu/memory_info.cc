// Reads /proc and the control groups. Any thread; called at start-up.
#include "kernels/cpu/memory_info.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>

namespace qserve::kernels::cpu {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// Bytes of a line "Name:  123 kB" of /proc/meminfo, 0 if absent.
int64_t MemInfoBytes(std::string_view name) {
  std::ifstream file("/proc/meminfo");
  std::string key;
  int64_t kilobytes = 0;
  for (std::string line; file >> key >> kilobytes;) {
    if (key == name) return kilobytes * 1024;
    std::getline(file, line);
  }
  return 0;
}

// The one number in a control group's file, kNoLimit for "max", an absent file or nonsense.
int64_t GroupValue(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value && value >= 0 ? value : kNoLimit;
}

// The least over this process's memory group and all above it: limits, or what is left of them.
int64_t LeastOfGroups(bool left) {
  std::ifstream file("/proc/self/cgroup");
  int64_t least = kNoLimit;
  for (std::string line; std::getline(file, line);) {
    const bool unified = line.rfind("0::", 0) == 0;
    const size_t memory = line.find(":memory:");
    if (!unified && memory == std::string::npos) continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    const char* limit_name = unified ? "/memory.max" : "/memory.limit_in_bytes";
    const char* used_name = unified ? "/memory.current" : "/memory.usage_in_bytes";
    std::string path = unified ? line.substr(3) : line.substr(memory + 8);
    for (;;) {
      if (path == "/") path.clear();
      const int64_t limit = GroupValue(root + path + limit_name);
      if (limit != kNoLimit) {
        const int64_t used = left ? GroupValue(root + path + used_name) : 0;
        least = std::min(least, used == kNoLimit ? limit : std::max<int64_t>(0, limit - used));
      }
      if (path.empty()) break;
      path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
  }
  return least;
}

int64_t Smaller(int64_t machine, int64_t groups) {
  return machine == 0 && groups == kNoLimit ? 0 : std::min(machine, groups);
}

}  // namespace

int64_t AvailableMemoryBytes() {
  return Smaller(MemInfoBytes("MemAvailable:"), LeastOfGroups(true));
}

int64_t TotalMemoryBytes() { return Smaller(MemInfoBytes("MemTotal:"), LeastOfGroups(false)); }

std::string CpuModelName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos)
      return line.substr(colon + 2);
  }
  return "cpu";
}

}  // namespace qserve::kernels::cpu
