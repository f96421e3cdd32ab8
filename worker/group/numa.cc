#include "worker/group/numa.h"

#include <fmt/format.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "common/log.h"
#include "common/status_macros.h"
#include "worker/group/socket.h"

namespace qserve::worker::group {
namespace {

constexpr int kMostCpus = 65536;
constexpr int kMostNodes = 1024;

std::optional<int> ParseNumber(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0 || value >= kMostCpus)
    return std::nullopt;
  return value;
}

// The first line of a file; nothing if there is none.
std::optional<std::string> FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!file) return std::nullopt;
  std::getline(file, line);
  while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
  return line;
}

// The list in a file of nodes ("has_memory"), nothing if the kernel does not have the file.
absl::StatusOr<std::optional<std::vector<int>>> ReadList(const std::string& path) {
  const std::optional<std::string> line = FirstLine(path);
  if (!line) return std::optional<std::vector<int>>();
  auto list = ParseCpuList(*line);
  if (!list.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", path, std::string(list.status().message())));
  }
  return std::optional(*std::move(list));
}

bool Holds(const std::optional<std::vector<int>>& list, int value) {
  return !list || std::binary_search(list->begin(), list->end(), value);
}

// Numbers of the folders "node<N>", ascending.
std::vector<int> NodeNumbers(const std::string& directory) {
  std::vector<int> numbers;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("node")) continue;
    const std::optional<int> number = ParseNumber(std::string_view(name).substr(4));
    if (number && *number < kMostNodes) numbers.push_back(*number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

}  // namespace

absl::StatusOr<std::vector<int>> ParseCpuList(std::string_view text) {
  std::vector<int> cpus;
  const absl::Status malformed =
      absl::InvalidArgumentError(fmt::format("'{}' is no list of processors", text.substr(0, 64)));
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view item = text.substr(0, comma);
    const size_t dash = item.find('-');
    const std::optional<int> first = ParseNumber(item.substr(0, dash));
    const std::optional<int> last =
        dash == std::string_view::npos ? first : ParseNumber(item.substr(dash + 1));
    if (!first || !last || *last < *first || (!cpus.empty() && *first <= cpus.back())) {
      return malformed;
    }
    for (int cpu = *first; cpu <= *last; ++cpu) cpus.push_back(cpu);
    if (comma == std::string_view::npos) break;
    text.remove_prefix(comma + 1);
    if (text.empty()) return malformed;
  }
  return cpus;
}

absl::StatusOr<std::vector<NumaNode>> ReadNumaNodes(const std::string& directory,
                                                    std::span<const int> allowed) {
  ASSIGN_OR_RETURN(const auto online, ReadList(directory + "/online"));
  ASSIGN_OR_RETURN(const auto with_memory, ReadList(directory + "/has_memory"));
  std::vector<NumaNode> nodes;
  for (const int number : NodeNumbers(directory)) {
    if (!Holds(online, number) || !Holds(with_memory, number)) continue;
    ASSIGN_OR_RETURN(const auto cpus,
                     ReadList(fmt::format("{}/node{}/cpulist", directory, number)));
    NumaNode node = {.id = number, .cpus = {}};
    for (const int cpu : cpus.value_or(std::vector<int>())) {
      if (std::binary_search(allowed.begin(), allowed.end(), cpu)) node.cpus.push_back(cpu);
    }
    if (!node.cpus.empty()) nodes.push_back(std::move(node));
  }
  return nodes;
}

std::vector<int> AllowedCpus() {
  std::vector<int> cpus;
  cpu_set_t* set = CPU_ALLOC(kMostCpus);
  const size_t bytes = CPU_ALLOC_SIZE(kMostCpus);
  CPU_ZERO_S(bytes, set);
  if (sched_getaffinity(0, bytes, set) == 0) {
    for (int cpu = 0; cpu < kMostCpus; ++cpu) {
      if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, set)) cpus.push_back(cpu);
    }
  }
  CPU_FREE(set);
  return cpus;
}

int NodeOfRank(int local_rank, int local_size, int nodes) {
  return static_cast<int>(int64_t{local_rank} * nodes / local_size);
}

std::vector<int> ShareOfCpus(std::span<const int> cpus, int index, int parts) {
  const size_t each = cpus.size() / static_cast<size_t>(parts);
  const auto share = cpus.subspan(static_cast<size_t>(index) * each, each);
  return {share.begin(), share.end()};
}

absl::Status BindToNode(const NumaNode& node) {
  cpu_set_t* set = CPU_ALLOC(kMostCpus);
  const size_t bytes = CPU_ALLOC_SIZE(kMostCpus);
  CPU_ZERO_S(bytes, set);
  for (const int cpu : node.cpus) CPU_SET_S(static_cast<size_t>(cpu), bytes, set);
  const int bound = sched_setaffinity(0, bytes, set);
  const int error = errno;
  CPU_FREE(set);
  if (bound != 0) return ErrnoStatus("sched_setaffinity", error);
  unsigned long mask[kMostNodes / (CHAR_BIT * sizeof(unsigned long))] = {};
  constexpr int kWordBits = CHAR_BIT * sizeof(unsigned long);
  mask[node.id / kWordBits] |= 1UL << (node.id % kWordBits);
  // The kernel takes one bit fewer than it is told.
  if (syscall(SYS_set_mempolicy, MPOL_PREFERRED, mask, kMostNodes + 1) != 0) {
    LOG_WARN("memory of NUMA node {} cannot be preferred: {}", node.id, std::strerror(errno));
  }
  return absl::OkStatus();
}

}  // namespace qserve::worker::group
