// Parsing of a safetensors header without building a tree: one pass, a fixed schema, anything else
// refused where it stands. Called by safetensors.cc alone.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/safetensors.h"

namespace qserve::worker::checkpoint {

// Entries in the order of the header, offsets as written there (relative to the end of the header),
// not yet checked against dtype, shape and file.
absl::StatusOr<std::vector<TensorEntry>> ParseSafetensorsHeader(std::string_view header);

}  // namespace qserve::worker::checkpoint
