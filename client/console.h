// Where a command reads and writes: the process's streams in main, strings in tests.
#pragma once

#include <iosfwd>
#include <string>

#include "absl/status/status.h"

namespace qserve::client {

struct Console {
  std::istream& in;
  std::ostream& out;  // answers only
  std::ostream& err;  // everything else
  bool in_is_terminal = false;
  bool out_is_terminal = false;
};

// Writes `text`, a server's, to `out` at once; made harmless if that is a terminal. Unavailable
// when nobody takes it any more.
absl::Status Print(const Console& console, const std::string& text);

inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitInterrupted = 130;  // as shells say of SIGINT

// Tells a command's end to the user: nothing, the interrupt (Cancelled), or "qserve: reason".
// Returns the exit code.
int Report(const Console& console, const absl::Status& status);

}  // namespace qserve::client
