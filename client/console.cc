#include "client/console.h"

#include <ostream>

#include "client/terminal_text.h"

namespace qserve::client {

absl::Status Print(const Console& console, const std::string& text) {
  console.out << (console.out_is_terminal ? SafeForTerminal(text) : text);
  if (console.out.flush()) return absl::OkStatus();
  return absl::UnavailableError("cannot write to standard output");
}

int Report(const Console& console, const absl::Status& status) {
  if (status.ok()) return kExitOk;
  console.out.flush();
  if (absl::IsCancelled(status)) {
    console.err << "qserve: interrupted" << std::endl;
    return kExitInterrupted;
  }
  console.err << "qserve: " << OneLine(std::string(status.message())) << std::endl;
  return kExitError;
}

}  // namespace qserve::client
