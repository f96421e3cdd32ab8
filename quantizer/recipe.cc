// See recipe.h.
#include "quantizer/recipe.h"

#include <fmt/format.h>

#include "kernels/quant/rtn.h"

namespace qserve::quantizer {
namespace {

using worker::checkpoint::Scheme;

constexpr Recipe kRecipes[] = {
    {"rtn-g128", "round to nearest, groups of 128 columns (two-level scales)", Scheme::kQoqGroup128,
     kernels::RtnGroup128},
    {"rtn-gchn", "round to nearest, one scale and zero per output channel", Scheme::kQoqPerChannel,
     kernels::RtnPerChannel},
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

int64_t ColumnMultiple(Scheme scheme) { return scheme == Scheme::kQoqGroup128 ? 128 : 32; }

}  // namespace qserve::quantizer
