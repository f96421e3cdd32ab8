// The recipes of --recipe: presets of every switch. Called by quantize_command.cc and pipeline.cc;
// constant data.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "quantizer/settings.h"
#include "worker/checkpoint/model_config.h"

namespace qserve::quantizer {

struct Recipe {
  std::string_view name;
  std::string_view description;
  Settings settings;
};

std::span<const Recipe> Recipes();

// InvalidArgument with the supported list.
absl::StatusOr<const Recipe*> FindRecipe(std::string_view name);

// Rows and columns of every linear must be multiples of these, so that it can be stored.
inline constexpr int64_t kRowMultiple = 32;
int64_t ColumnMultiple(worker::checkpoint::Scheme scheme);

}  // namespace qserve::quantizer
