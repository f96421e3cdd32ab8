// See recipe.h.
#include "quantizer/recipe.h"

#include <fmt/format.h>
namespace qserve::quantizer {
namespace {

using worker::checkpoint::Scheme;

// Nothing but the rounding itself.
constexpr Settings RoundToNearest(Scheme scheme) {
  Settings settings;
  settings.transform.rotate = false;
  settings.transform.values = transform::ValueTransform::kNone;
  settings.transform.attention.enabled = false;
  settings.solve.scheme = scheme;
  settings.solve.clip_search = false;
  settings.solve.free_zero = false;
  settings.solve.gptq = false;
  settings.correct_inputs = 0;
  settings.lm_head_bits = 0;
  return settings;
}

// What helps: docs/ACCURACY.md.
constexpr Settings Qoq(Scheme scheme) {
  Settings settings;
  settings.transform.attention.search = true;
  settings.transform.down_proj.enabled = true;
  settings.transform.down_proj.search = true;
  settings.solve.scheme = scheme;
  return settings;
}

constexpr Recipe kRecipes[] = {
    {"qoq-g128", "QoQ, groups of 128 columns (two-level scales)", Qoq(Scheme::kQoqGroup128)},
    {"qoq-gchn", "QoQ, one scale and zero per output channel", Qoq(Scheme::kQoqPerChannel)},
    {"rtn-g128", "round to nearest, groups of 128 columns (two-level scales)",
     RoundToNearest(Scheme::kQoqGroup128)},
    {"rtn-gchn", "round to nearest, one scale and zero per output channel",
     RoundToNearest(Scheme::kQoqPerChannel)},
};

}  // namespace

std::span<const Recipe> Recipes() { return kRecipes; }

absl::StatusOr<const Recipe*> FindRecipe(std::string_view name) {
  std::string names;
  for (const Recipe& recipe : kRecipes) {
    if (recipe.name == name) return &recipe;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", recipe.name);
  }
  return absl::InvalidArgumentError(
      fmt::format("the recipe \"{}\" is not known; there are {}", name, names));
}

bool NeedsCalibration(const Settings& settings) {
  const transform::TransformOptions& transform = settings.transform;
  return settings.solve.gptq || settings.clip_attention.enabled || settings.correct_inputs > 0 ||
         transform.attention.enabled || transform.o_proj.enabled || transform.down_proj.enabled ||
         transform.reorder || transform.values == transform::ValueTransform::kBalanced;
}

int64_t ColumnMultiple(Scheme scheme) { return scheme == Scheme::kQoqGroup128 ? 128 : 32; }

}  // namespace qserve::quantizer
