// Which part of a model a tensor-parallel rank holds: pure arithmetic on a ModelConfig. Used by
// weights.cc (what to read), llama.cc (shapes) and exec (KV size). Every rank computes the same
// cuts.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/model_config.h"

namespace qserve::worker::model {

using checkpoint::Range;

// Columns of a row-parallel linear are cut at multiples of this: a slice may begin inside a group
// of 128 (design, "Slicing").
inline constexpr int64_t kCutMultiple = 32;

struct Shard {
  int rank = 0;
  int size = 1;

  // Query heads [heads.begin, heads.end); rows of q_proj and columns of o_proj are these times
  // head_dim.
  Range heads;
  // The kv head that each local one is a copy of. Local query head h reads local kv head h /
  // (heads.size() / kv_heads.size()). Consecutive and disjoint over ranks where the degree divides
  // the model's kv heads; otherwise heads are replicated.
  std::vector<int> kv_heads;

  Range intermediate;  // rows of gate_proj and up_proj, columns of down_proj; begins at a multiple
                       // of kCutMultiple

  int64_t vocab_rows = 0;  // rows of every rank's lm_head and embedding shard, the same on all (a
                           // multiple of kCutMultiple)
  Range vocab;  // ids this rank really has: at most vocab_rows, fewer or none at the end of the
                // vocabulary

  int local_heads() const { return static_cast<int>(heads.size()); }
  int local_kv_heads() const { return static_cast<int>(kv_heads.size()); }
};

// Degrees that cut `config`: divisors of its query heads that leave every rank at least
// kCutMultiple intermediate columns.
std::vector<int> LegalDegrees(const checkpoint::ModelConfig& config);

// InvalidArgument for a degree that is not legal, naming the legal ones.
absl::StatusOr<Shard> MakeShard(const checkpoint::ModelConfig& config, int rank, int size);

}  // namespace qserve::worker::model
