// How much memory this process can still get, and what the machine is called. Linux; elsewhere the
// answers are 0 and "cpu".
#pragma once

#include <cstdint>
#include <string>

namespace qserve::kernels::cpu {

// The smaller of what /proc/meminfo calls available and what the process's control groups (version
// 2 or 1) leave. 0 if unknown.
int64_t AvailableMemoryBytes();

// The smaller of the machine's memory and its control groups' limits. 0 if unknown.
int64_t TotalMemoryBytes();

// "model name" of /proc/cpuinfo, or "cpu".
std::string CpuModelName();

}  // namespace qserve::kernels::cpu
