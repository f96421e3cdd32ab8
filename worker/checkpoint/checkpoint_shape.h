// Whether a directory's tensors are those that its configuration asks for. Called once by
// Checkpoint::Open, so that a wrong file is refused at the start and by name, not in the middle of
// loading.
#pragma once

#include "absl/status/status.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/tensor_set.h"

namespace qserve::worker::checkpoint {

// The scheme that the tensors of the first block show; for directories without quantization_config.
// InvalidArgument for schemes of other quantizers.
absl::StatusOr<Scheme> DetectScheme(const TensorSet& tensors);

// InvalidArgument names the first tensor that is missing, has another shape or a dtype of another
// kind, or a bias that the configuration does not know.
absl::Status CheckTensors(const ModelConfig& config, const TensorSet& tensors);

}  // namespace qserve::worker::checkpoint
