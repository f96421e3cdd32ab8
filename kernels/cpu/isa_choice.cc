// Chooses among AllOpTables().
#include "kernels/cpu/isa_choice.h"

#include <cstdlib>

namespace qserve::kernels::cpu {

std::vector<std::string> SupportedIsas() {
  std::vector<std::string> names;
  for (const OpTable* table : AllOpTables()) {
    if (table->supported()) names.emplace_back(table->isa);
  }
  return names;
}

StatusOr<const OpTable*> ChooseOpTable(const std::string& name) {
  std::string wanted = name;
  std::string source = "CPU ISA";
  if (wanted == "auto" || wanted.empty()) {
    const char* variable = std::getenv("QSERVE_CPU_ISA");
    wanted = variable == nullptr || *variable == '\0' ? "auto" : variable;
    source = "QSERVE_CPU_ISA";
  }
  for (const OpTable* table : AllOpTables()) {
    // Asked last: AMX has to be granted to the process.
    if ((wanted == "auto" || wanted == table->isa) && table->supported()) return table;
  }
  std::string message = source + " " + wanted + " cannot run on this machine; supported:";
  for (const std::string& supported : SupportedIsas()) message += " " + supported;
  return Unsupported(message);
}

}  // namespace qserve::kernels::cpu
