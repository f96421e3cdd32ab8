// What a rank's share of a model takes on a device, by tensor-parallel degree: arithmetic on the
// model's dimensions, for the message of a start that runs out of memory. Used by rank.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/types.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/model_config.h"
#include "worker/model/sharding.h"

namespace qserve::worker::exec {

struct ServedFormats {
  kernels::WeightFormat linears = kernels::WeightFormat::kW4Group128;
  kernels::WeightFormat lm_head = kernels::WeightFormat::kW8;
  std::span<const kernels::KvFormat> kv;  // one a layer
};

// Bytes of rank 0's weights (no rank has more, but for a few rows) in a GPU's packed order.
int64_t WeightBytesOfRank(const checkpoint::ModelConfig& config, const model::Shard& shard,
                          const ServedFormats& formats);

// Which tensor-parallel degree above `degree` is the first whose ranks have room, each on a device
// with `free_bytes`, for their weights and the keys and values of `tokens` tokens; in words, with
// the sizes, also where none has. Activations and workspaces come on top. Empty where the formats
// have no GPU order.
std::string DegreeAdvice(const checkpoint::ModelConfig& config, const ServedFormats& formats,
                         int degree, int64_t tokens, int64_t free_bytes);

}  // namespace qserve::worker::exec
