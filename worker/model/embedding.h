// A rank's rows of the embedding. They are looked up, never multiplied, and a step wants few of
// them: where the backend computes on the host's memory they stay in the checkpoint's file, and a
// step reads the ones it needs through the system's page cache; other devices get a copy. Part of
// ModelWeights; used by llama.cc on the thread that runs steps.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/stored_rows.h"
#include "worker/model/sharding.h"

namespace qserve::worker::model {

class Embedding {
 public:
  Embedding() = default;

  // Of the shard's ids. `reader_threads` read ahead of a copy; `copied` hears of its bytes as they
  // come, on this thread. Errors: the checkpoint's, the backend's.
  static absl::StatusOr<Embedding> Load(const checkpoint::Checkpoint& checkpoint,
                                        const Shard& shard, kernels::Backend& backend,
                                        int reader_threads,
                                        const std::function<void(int64_t bytes)>& copied);

  // out row i = the row of token_ids[i], or of the id last sampled for slot ~token_ids[i]; zeros
  // for ids that other ranks have. Issued through `backend`, the one of Load; a row that cannot be
  // read fails its step (kDevice).
  void LookUp(kernels::Backend& backend, std::span<const int32_t> token_ids,
              const int32_t* sampled_ids, const kernels::FloatMatrix& out) const;

  // Memory of the backend's.
  int64_t device_bytes() const { return memory_.bytes(); }

 private:
  absl::Status Copy(const checkpoint::Checkpoint& checkpoint, const Shard& shard,
                    kernels::Backend& backend, int reader_threads,
                    const std::function<void(int64_t bytes)>& copied);
  void LookUpStored(kernels::Backend& backend, std::span<const int32_t> token_ids,
                    const int32_t* sampled_ids, const kernels::FloatMatrix& out) const;

  std::optional<checkpoint::StoredRows> stored_;  // where the rows stay in their file
  kernels::Buffer memory_;                        // all rows, or some that were read for a step
  kernels::EmbeddingTable table_;                 // of what is in memory_
  int64_t first_id_ = 0;
};

}  // namespace qserve::worker::model
