#include "worker/model/rope.h"

#include "kernels/quant/rope_table.h"
#include "worker/model/device_status.h"

namespace qserve::worker::model {
namespace {

kernels::RopeType TypeOf(checkpoint::RopeType type) {
  switch (type) {
    case checkpoint::RopeType::kDefault:
      return kernels::RopeType::kDefault;
    case checkpoint::RopeType::kLinear:
      return kernels::RopeType::kLinear;
    case checkpoint::RopeType::kLlama3:
      return kernels::RopeType::kLlama3;
    case checkpoint::RopeType::kYarn:
      return kernels::RopeType::kYarn;
  }
  return kernels::RopeType::kDefault;
}

}  // namespace

absl::StatusOr<std::vector<float>> MakeRopeTable(const checkpoint::ModelConfig& config,
                                                 int64_t positions) {
  const checkpoint::RopeConfig& rope = config.rope;
  kernels::RopeSpec spec;
  spec.type = TypeOf(rope.type);
  spec.head_dim = config.head_dim;
  spec.theta = rope.theta;
  spec.factor = rope.factor;
  spec.low_freq_factor = rope.low_freq_factor;
  spec.high_freq_factor = rope.high_freq_factor;
  spec.original_max_position_embeddings = rope.original_max_position_embeddings;
  spec.beta_fast = rope.beta_fast;
  spec.beta_slow = rope.beta_slow;
  spec.mscale = rope.mscale;
  spec.mscale_all_dim = rope.mscale_all_dim;
  spec.attention_factor = rope.attention_factor;
  spec.truncate = rope.truncate;
  return ToAbsl(kernels::BuildRopeTable(spec, positions));
}

}  // namespace qserve::worker::model
