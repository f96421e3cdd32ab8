// The recipes of --recipe: what is done to a model's linears. Called by main.cc and pipeline.cc;
// constant data.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/quant/linear_weight.h"
#include "worker/checkpoint/model_config.h"

namespace qserve::quantizer {

struct Recipe {
  std::string_view name;
  std::string_view description;
  worker::checkpoint::Scheme scheme;
  // Quantizes rows [n][k] of a linear whose norm gains are folded in; rows are independent of one
  // another.
  kernels::StatusOr<kernels::LinearWeight> (*quantize_rows)(const float* weights, int64_t n,
                                                            int64_t k);
};

std::span<const Recipe> Recipes();

// InvalidArgument with the supported list.
absl::StatusOr<const Recipe*> FindRecipe(std::string_view name);

// Rows and columns of every linear must be multiples of these, so that it can be stored.
inline constexpr int64_t kRowMultiple = 32;
int64_t ColumnMultiple(worker::checkpoint::Scheme scheme);

}  // namespace qserve::quantizer
