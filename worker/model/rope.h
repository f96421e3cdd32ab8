// A model's rotary table: configuration to kernels/quant/rope_table.h. Called once when a Llama is
// made, and by the quantizer.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/model_config.h"

namespace qserve::worker::model {

// [positions, head_dim]: cosines, then sines. InvalidArgument for a configuration that has no
// table.
absl::StatusOr<std::vector<float>> MakeRopeTable(const checkpoint::ModelConfig& config,
                                                 int64_t positions);

}  // namespace qserve::worker::model
