// The commands of `qserve`. Each takes its own arguments (`argv[0]` is the command's name), blocks
// until it is done and returns the process's exit code; errors are one line on `console.err`.
#pragma once

#include "client/console.h"
#include "client/interrupt.h"

namespace qserve::client {

// One completion, streamed.
int Generate(int argc, const char* const* argv, const Console& console, Interrupt& interrupt);
// A conversation, a line of input a turn.
int Chat(int argc, const char* const* argv, const Console& console, Interrupt& interrupt);
// Whether a router or replica takes requests, and for which models.
int Status(int argc, const char* const* argv, const Console& console, Interrupt& interrupt);

}  // namespace qserve::client
