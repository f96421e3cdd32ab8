// `qserve-quantize eval`: what a checkpoint's quantization costs, measured. Called by main.cc on
// the main thread.
#pragma once

#include <atomic>

namespace qserve::quantizer {

// `argv[0]` is "eval". Returns the exit code; errors are one line on standard error.
int EvalCommand(int argc, const char* const* argv, const std::atomic<bool>& interrupted);

}  // namespace qserve::quantizer
