// The NUMA nodes of this machine that a group may spread over, and putting a rank on one. Called by
// worker/main: by the supervisor to choose a degree, by a rank before it starts threads.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qserve::worker::group {

inline constexpr const char* kNumaDirectory = "/sys/devices/system/node";

// A node with processors of its own; `cpus` ascends and is never empty.
struct NumaNode {
  int id = 0;
  std::vector<int> cpus;
};

// "0-3,8" as the kernel writes it, ascending; empty text is no processors. InvalidArgument for
// anything else, numbers over 65535 among it.
absl::StatusOr<std::vector<int>> ParseCpuList(std::string_view text);

// Nodes under `directory` (laid out as kNumaDirectory) that have memory and at least one of the
// processors in `allowed` (ascending), by number; each with those alone. Nodes of memory only and
// of processors that are offline or kept from this process do not count. Empty where the directory
// is absent: a kernel without NUMA. Pure but for reading the files.
absl::StatusOr<std::vector<NumaNode>> ReadNumaNodes(const std::string& directory,
                                                    std::span<const int> allowed);

// Processors that the calling thread may run on, ascending.
std::vector<int> AllowedCpus();

// Which of `nodes` nodes the rank `local_rank` of `local_size` belongs on: evenly, neighbours
// together.
int NodeOfRank(int local_rank, int local_size, int nodes);

// The processors of `cpus` that are the part `index` of `parts`, as many for each as go evenly:
// none overlap. Empty where there are fewer than parts.
std::vector<int> ShareOfCpus(std::span<const int> cpus, int index, int parts);

// The calling thread, and threads that it starts from now on, run on the node's processors alone.
// Its memory comes from there while there is some: a preference that a container may forbid, which
// is logged and otherwise ignored.
absl::Status BindToNode(const NumaNode& node);

}  // namespace qserve::worker::group
