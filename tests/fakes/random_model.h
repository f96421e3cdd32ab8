// Makes a full-precision model directory with random weights, so that tests of models, tensor
// parallelism and engines need no file. The weights are those of
// worker/checkpoint/random_weights.h, equal to the bit to tests/golden/models/random_weights.py.
// Used by tests only, any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "worker/checkpoint/safetensors.h"

namespace qserve::fakes {

struct RandomModelOptions {
  uint32_t seed = 1;
  // kF32, kF16 or kBf16 (rounded to nearest even). The goldens are made from kF32.
  worker::checkpoint::Dtype dtype = worker::checkpoint::Dtype::kF32;
  int64_t max_shard_bytes = int64_t{1} << 40;  // smaller: several shards with an index
  std::string generation_config_json;          // written if not empty
};

// Writes config.json (the text given, whose architecture and sizes say which tensors there are) and
// model.safetensors into `directory`, which must be absent or empty.
absl::Status WriteRandomModel(const std::string& directory, const std::string& config_json,
                              const RandomModelOptions& options);

}  // namespace qserve::fakes
