// Chooses the op table of a CPU backend. Used by cpu_backend.cc and device_factory.cc at start-up.
#pragma once

#include <string>
#include <vector>

#include "kernels/cpu/op_table.h"

namespace qserve::kernels::cpu {

// Names of the tables that run on this machine, best first; ends with "reference".
std::vector<std::string> SupportedIsas();

// "auto": what the environment variable QSERVE_CPU_ISA names if it is set, else the best that runs
// here. Unsupported, with the names that are, if `name` is unknown or cannot run here.
StatusOr<const OpTable*> ChooseOpTable(const std::string& name);

}  // namespace qserve::kernels::cpu
