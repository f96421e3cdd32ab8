// The known model shapes that random checkpoints are made of: config.json and
// generation_config.json as their publishers have them, as far as speed and memory depend on it.
// Called by make_model.cc and the help of qserve-bench; constant data.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace qserve::bench {

struct ModelShape {
  std::string config_json;  // of the floating-point model
  std::string generation_config_json;
};

std::vector<std::string> ShapeNames();

// InvalidArgument with the known names.
absl::StatusOr<ModelShape> FindShape(std::string_view name);

}  // namespace qserve::bench
