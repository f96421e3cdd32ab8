// See quantize_command.h.
#include "quantizer/quantize_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "common/cli/options.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "quantizer/evaluate/text_tokens.h"
#include "quantizer/knobs.h"
#include "quantizer/known_models.h"
#include "quantizer/pipeline.h"
#include "quantizer/recipe.h"
#include "worker/checkpoint/model_config.h"

namespace qserve::quantizer {
namespace {

constexpr int kMaxThreads = 1024;

std::string RecipeHelp() {
  std::string help = "What to do:";
  for (const Recipe& recipe : Recipes())
    help += fmt::format(" {} ({});", recipe.name, recipe.description);
  help.pop_back();
  return help;
}

struct Flags {
  std::string model, output, recipe, calibration;
  std::map<std::string, std::string> knobs;  // by name; empty: as the recipe has it
  std::string log_level = "info";
  std::string device = "cpu";
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
};

absl::Status Run(const Flags& flags, const std::atomic<bool>& interrupted) {
  RETURN_IF_ERROR(InitLogging("quantize", flags.log_level, "text"));
  QuantizeOptions options;
  options.model = flags.model;
  options.output = flags.output;
  options.device = flags.device;
  options.threads = flags.threads;
  options.terminal = ::isatty(STDERR_FILENO) == 1;
  options.interrupted = &interrupted;
  ASSIGN_OR_RETURN(const Recipe* recipe, FindRecipe(flags.recipe));
  options.settings = recipe->settings;
  ASSIGN_OR_RETURN(const auto config, worker::checkpoint::ReadModelConfig(flags.model));
  const auto published = PublishedSmoothing(config, recipe->settings.solve.scheme);
  if (published && recipe->settings.transform.rotate)
    options.settings.transform.down_proj = *published;
  for (const auto& [name, text] : flags.knobs) {
    if (!text.empty()) RETURN_IF_ERROR(SetKnob(name, text, options.settings));
  }
  if (!flags.calibration.empty()) {
    ASSIGN_OR_RETURN(options.calibration, ReadTokens(flags.calibration, flags.model, 0));
  }
  LOG_INFO("quantizing {} into {} by {}", flags.model, flags.output, flags.recipe);
  RETURN_IF_ERROR(QuantizeModel(options));
  LOG_INFO("wrote {}", flags.output);
  return absl::OkStatus();
}

}  // namespace

int QuantizeCommand(int argc, const char* const* argv, const std::atomic<bool>& interrupted) {
  Flags flags;
  cli::Options options("qserve-quantize",
                       "Quantize a Hugging Face model directory (safetensors) to a QoQ checkpoint");
  options.Add("model", flags.model, "Directory of the model to quantize")->required();
  options.Add("output", flags.output, "Directory to write; must not exist or be empty")->required();
  options.Add("recipe", flags.recipe, RecipeHelp())->required();
  options.Add("calibration", flags.calibration,
              "Text to calibrate on: a plain file, or .jsonl with a string \"text\" a line");
  for (const Knob& knob : Knobs())
    options.Add(knob.name, flags.knobs[knob.name], fmt::format("{} (unset: by recipe)", knob.help));
  options.Add("device", flags.device, "That runs calibration: cpu, cuda or auto");
  options.Add("threads", flags.threads, "Threads to use")->check(CLI::Range(1, kMaxThreads));
  options.Add("log-level", flags.log_level, "debug, info, warn or error");
  options.app().footer(
      "Other commands: qserve-quantize eval --help, qserve-quantize import --help");
  if (const std::optional<int> code = options.Parse(argc, argv)) return *code;
  if (const absl::Status status = Run(flags, interrupted); !status.ok()) {
    std::fputs(fmt::format("qserve-quantize: {}\n", std::string(status.message())).c_str(), stderr);
    return 1;
  }
  return 0;
}

}  // namespace qserve::quantizer
