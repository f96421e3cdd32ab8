// See import_command.h.
#include "quantizer/import/import_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "common/cli/options.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "quantizer/import/import_model.h"

namespace qserve::quantizer {
namespace {

struct Flags {
  std::string format = "auto", column_order = "auto", norm_gains = "refuse";
  std::string log_level = "info";
};

absl::Status Run(const Flags& flags, ImportOptions options) {
  RETURN_IF_ERROR(InitLogging("import", flags.log_level, "text"));
  ASSIGN_OR_RETURN(options.format, ParseImportFormat(flags.format));
  ASSIGN_OR_RETURN(options.column_order, ParseColumnOrder(flags.column_order));
  ASSIGN_OR_RETURN(options.norm_gains, ParseNormGains(flags.norm_gains));
  RETURN_IF_ERROR(ImportModel(options));
  LOG_INFO("wrote {}", options.output);
  return absl::OkStatus();
}

}  // namespace

int ImportCommand(int argc, const char* const* argv, const std::atomic<bool>& interrupted) {
  Flags flags;
  ImportOptions values = {.terminal = ::isatty(STDERR_FILENO) == 1, .interrupted = &interrupted};
  cli::Options options("qserve-quantize import",
                       "Turn a checkpoint that another program quantized to 4 bits into a QoQ "
                       "directory, without rounding anything again");
  options.Add("model", values.model, "Directory of the checkpoint")->required();
  options.Add("output", values.output, "Directory to write; must not exist or be empty")
      ->required();
  options.Add("base", values.base,
              "Directory with config.json and tokenizer, where the checkpoint has none");
  options.Add("scales", values.scales,
              "DeepCompressor's scales; default: scale.pt beside the checkpoint");
  options.Add("format", flags.format, "auto, qserve, deepcompressor or compressed-tensors");
  options.Add("column-order", flags.column_order,
              "Of packed group scales: qserve (its own converter, published checkpoints), "
              "deepcompressor, or auto: what the data show");
  options.Add("norm-gains", flags.norm_gains,
              "Of a packed checkpoint whose norms have gains: refuse, ones (as QServe) or keep");
  options.Add("log-level", flags.log_level, "debug, info, warn or error");
  if (const std::optional<int> code = options.Parse(argc, argv)) return *code;
  if (const absl::Status status = Run(flags, values); !status.ok()) {
    std::fputs(fmt::format("qserve-quantize import: {}\n", std::string(status.message())).c_str(),
               stderr);
    return 1;
  }
  return 0;
}

}  // namespace qserve::quantizer
