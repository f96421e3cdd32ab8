// qserve-quantize: makes QoQ checkpoints from Hugging Face directories, takes over those of other
// programs, and measures what quantization costs. The main thread works; a second one waits for
// signals, so that Ctrl-C leaves nothing half-written behind.
#include <atomic>
#include <string_view>

#include "common/shutdown.h"
#include "quantizer/evaluate/eval_command.h"
#include "quantizer/import/import_command.h"
#include "quantizer/quantize_command.h"

namespace qserve::quantizer {
namespace {

int Main(int argc, char** argv) {
  std::atomic<bool> interrupted = false;
  const ShutdownSignal signals([&](int) { interrupted = true; });
  const std::string_view command = argc > 1 ? argv[1] : "";
  if (command == "eval") return EvalCommand(argc - 1, argv + 1, interrupted);
  if (command == "import") return ImportCommand(argc - 1, argv + 1, interrupted);
  return QuantizeCommand(argc, argv, interrupted);
}

}  // namespace
}  // namespace qserve::quantizer

int main(int argc, char** argv) { return qserve::quantizer::Main(argc, argv); }
