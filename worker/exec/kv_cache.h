// The pages of a rank's keys and values: formats, sizes and memory. Made by rank.cc at start-up;
// which page holds what is the scheduler's business.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/checkpoint/model_config.h"
#include "worker/exec/executor_options.h"
#include "worker/model/llama.h"
#include "worker/model/sharding.h"

namespace qserve::worker::exec {

// One format a layer. kAuto: what the checkpoint says (per layer, else as a whole); where it says
// nothing, int4 for a model served quantized and fp16 for another.
std::vector<kernels::KvFormat> LayerKvFormats(const checkpoint::ModelConfig& config,
                                              KvCacheType type,
                                              checkpoint::LoadQuantization quantization);

// Bytes that one token takes in all layers of a rank: sum over layers of 2 * kv_heads * (head_dim *
// bits / 8 + 4 if quantized).
int64_t KvBytesPerToken(std::span<const kernels::KvShape> shapes);

// What --kv-cache-memory asks of one rank of a replica; 0 takes the default: on a CPU min(4 GiB, a
// quarter of the memory) for the replica, on other devices 95 percent of what is still available to
// the rank: ask once weights and workspaces are there.
int64_t KvMemoryOfRank(int64_t kv_cache_memory, int ranks, const kernels::Backend& backend);

class KvCache {
 public:
  // Layout of each layer for this rank.
  static std::vector<kernels::KvShape> Shapes(const checkpoint::ModelConfig& config,
                                              const model::Shard& shard,
                                              std::span<const kernels::KvFormat> formats);

  // `blocks` pages a layer, zeroed. `backend` must outlive the cache. ResourceExhausted when the
  // memory is not there.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(kernels::Backend& backend,
                                                         std::span<const kernels::KvShape> shapes,
                                                         int32_t blocks);

  // The same, but all layers lie in one another's place: for steps that nobody reads again.
  static absl::StatusOr<std::unique_ptr<KvCache>> CreateScratch(
      kernels::Backend& backend, std::span<const kernels::KvShape> shapes, int32_t blocks);

  std::span<const model::LayerKv> layers() const { return layers_; }
  int32_t blocks() const { return blocks_; }
  int64_t bytes_per_token() const { return bytes_per_token_; }

 private:
  KvCache() = default;
  // Without layers yet.
  static std::unique_ptr<KvCache> Empty(std::span<const kernels::KvShape> shapes, int32_t blocks);
  // Memory of all blocks' pages of this size, owned by the cache.
  absl::StatusOr<void*> Allocate(kernels::Backend& backend, int64_t page_bytes);

  std::vector<kernels::Buffer> buffers_;
  std::vector<model::LayerKv> layers_;
  int32_t blocks_ = 0;
  int64_t bytes_per_token_ = 0;
};

}  // namespace qserve::worker::exec
