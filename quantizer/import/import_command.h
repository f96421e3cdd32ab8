// `qserve-quantize import`: takes over checkpoints that other programs quantized. Called by main.cc
// on the main thread.
#pragma once

#include <atomic>

namespace qserve::quantizer {

// `argv[0]` is "import". Returns the exit code; errors are one line on standard error.
int ImportCommand(int argc, const char* const* argv, const std::atomic<bool>& interrupted);

}  // namespace qserve::quantizer
