// `qserve-quantize --model DIR --output DIR --recipe NAME`: the flags of quantizing, and the call
// of the pipeline. Called by main.cc on the main thread when no other command is named.
#pragma once

#include <atomic>

namespace qserve::quantizer {

// Returns the exit code; errors are one line on standard error. `interrupted` turns true when the
// user wants to stop: nothing is left half-written.
int QuantizeCommand(int argc, const char* const* argv, const std::atomic<bool>& interrupted);

}  // namespace qserve::quantizer
