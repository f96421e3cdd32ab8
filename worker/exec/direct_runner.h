// A model without plans or slots: token ids in, logits out. For tests, calibration and perplexity;
// one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/comm/communicator.h"
#include "worker/exec/executor_options.h"
#include "worker/exec/kv_cache.h"
#include "worker/model/llama.h"

namespace qserve::worker::exec {

struct DirectRunnerOptions {
  int64_t max_tokens = 2048;    // of one sequence
  int64_t max_step_tokens = 0;  // of one step, for memory's sake; 0: max_tokens
  KvCacheType kv_cache = KvCacheType::kAuto;
  model::WeightOptions weights;
  model::ActivationObserver* observer = nullptr;  // must outlive the runner
};

class DirectRunner {
 public:
  // References must outlive the runner. The communicator says which shard is loaded; every rank of
  // a group calls the same.
  static absl::StatusOr<std::unique_ptr<DirectRunner>> Create(
      const checkpoint::Checkpoint& checkpoint, kernels::Backend& backend,
      comm::Communicator& communicator, const DirectRunnerOptions& options);

  // One step of Visit by hand: the next tokens of a sequence whose tokens before `first_position`
  // were run just before. model().logits() has a row for each. Ids must be of the vocabulary, and
  // no more than a step and a sequence may have.
  absl::Status Step(std::span<const int32_t> token_ids, int64_t first_position);

  // What a step computed: logits [count, vocabulary] behind the tokens from `first_position` on.
  // Device memory, valid during the call.
  using LogitVisitor =
      std::function<absl::Status(int64_t first_position, kernels::Matrix<const float> logits)>;

  // Runs a sequence that begins at position 0 in steps of `chunk` tokens (0: as many as a step may
  // have) and shows each step's logits to `visit` on rank 0. The first error of `visit` ends it.
  // InvalidArgument for too long a sequence or an id outside the vocabulary.
  absl::Status Visit(std::span<const int32_t> token_ids, int64_t chunk, const LogitVisitor& visit);

  // Logits [tokens][vocabulary] behind every token of a sequence that begins at position 0,
  // computed in steps of `chunk` tokens (0: as many as a step may have). On rank 0; empty
  // elsewhere. Errors of Visit.
  absl::StatusOr<std::vector<float>> Logits(std::span<const int32_t> token_ids, int64_t chunk = 0);

  model::Llama& model() { return *model_; }
  const KvCache& kv_cache() const { return *kv_cache_; }

 private:
  DirectRunner(const checkpoint::ModelConfig& config, kernels::Backend& backend,
               comm::Communicator& communicator, int64_t max_tokens, int64_t max_step_tokens);
  absl::Status RunChunk(std::span<const int32_t> token_ids, int64_t first_position);

  const checkpoint::ModelConfig config_;
  kernels::Backend& backend_;
  comm::Communicator& communicator_;
  const int64_t max_tokens_;
  const int64_t max_step_tokens_;
  std::vector<int32_t> block_table_;
  std::unique_ptr<KvCache> kv_cache_;
  std::unique_ptr<model::Llama> model_;
};

}  // namespace qserve::worker::exec
