#include "worker/exec/direct_runner.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/model/device_status.h"
#include "worker/model/sharding.h"
#include "worker/plan/step_plan.h"

namespace qserve::worker::exec {

DirectRunner::DirectRunner(const checkpoint::ModelConfig& config, kernels::Backend& backend,
                           comm::Communicator& communicator, int64_t max_tokens,
                           int64_t max_step_tokens)
    : config_(config),
      backend_(backend),
      communicator_(communicator),
      max_tokens_(max_tokens),
      max_step_tokens_(max_step_tokens),
      block_table_(
          static_cast<size_t>((max_tokens + plan::kBlockTokens - 1) / plan::kBlockTokens)) {
  std::iota(block_table_.begin(), block_table_.end(), 0);
}

absl::StatusOr<std::unique_ptr<DirectRunner>> DirectRunner::Create(
    const checkpoint::Checkpoint& checkpoint, kernels::Backend& backend,
    comm::Communicator& communicator, const DirectRunnerOptions& options) {
  const checkpoint::ModelConfig& config = checkpoint.config();
  if (options.max_tokens < 1 || options.max_tokens > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        fmt::format("sequences of {} tokens, the model has {} positions", options.max_tokens,
                    config.max_position_embeddings));
  }
  const int64_t step_tokens = options.max_step_tokens > 0
                                  ? std::min(options.max_step_tokens, options.max_tokens)
                                  : options.max_tokens;
  std::unique_ptr<DirectRunner> runner(
      new DirectRunner(config, backend, communicator, options.max_tokens, step_tokens));
  ASSIGN_OR_RETURN(const model::Shard shard,
                   model::MakeShard(config, communicator.rank(), communicator.size()));
  const auto formats = LayerKvFormats(config, options.kv_cache, options.weights.quantization);
  ASSIGN_OR_RETURN(runner->kv_cache_,
                   KvCache::Create(backend, KvCache::Shapes(config, shard, formats),
                                   static_cast<int32_t>(runner->block_table_.size())));
  ASSIGN_OR_RETURN(model::ModelWeights weights,
                   model::LoadWeights(checkpoint, shard, backend, options.weights));
  ASSIGN_OR_RETURN(runner->model_,
                   model::Llama::Create(config, shard, std::move(weights), backend, communicator,
                                        {.max_step_tokens = step_tokens,
                                         .max_logit_rows = step_tokens,
                                         .slots = 1,
                                         .max_positions = options.max_tokens,
                                         .observer = options.observer}));
  return runner;
}

absl::Status DirectRunner::Visit(std::span<const int32_t> token_ids, int64_t chunk,
                                 const LogitVisitor& visit) {
  const int64_t tokens = std::ssize(token_ids);
  if (tokens > max_tokens_) {
    return absl::InvalidArgumentError(fmt::format("{} tokens, at most {}", tokens, max_tokens_));
  }
  for (const int32_t id : token_ids) {
    if (id < 0 || id >= config_.vocab_size)
      return absl::InvalidArgumentError(fmt::format("token {}", id));
  }
  chunk = chunk > 0 ? std::min(chunk, max_step_tokens_) : max_step_tokens_;
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t count = std::min(chunk, tokens - begin);
    RETURN_IF_ERROR(
        Step(token_ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)), begin));
    if (communicator_.rank() != 0) continue;
    const kernels::Matrix<const float> logits = model_->logits();
    RETURN_IF_ERROR(visit(begin, {.data = logits.data,
                                  .rows = logits.rows,
                                  .cols = config_.vocab_size,
                                  .stride = logits.stride}));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> DirectRunner::Logits(std::span<const int32_t> token_ids,
                                                        int64_t chunk) {
  std::vector<float> all;
  const auto copy = [&](int64_t first, kernels::Matrix<const float> logits) {
    all.resize(static_cast<size_t>((first + logits.rows) * logits.cols));
    for (int64_t row = 0; row < logits.rows; ++row) {
      backend_.CopyToHost(all.data() + (first + row) * logits.cols, logits.row(row),
                          logits.cols * int64_t{sizeof(float)});
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(Visit(token_ids, chunk, copy));
  return all;
}

absl::Status DirectRunner::Step(std::span<const int32_t> token_ids, int64_t first_position) {
  const int64_t count = std::ssize(token_ids);
  QSERVE_CHECK(count <= max_step_tokens_ && first_position + count <= max_tokens_);
  std::vector<int32_t> rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  const std::vector<kernels::SequenceSpan> sequences = {{.first_row = 0,
                                                         .row_count = count,
                                                         .first_position = first_position,
                                                         .block_table = block_table_}};
  return model::ToAbsl(backend_.Run(0, [&] {
    model_->Forward(
        {.token_ids = token_ids, .sequences = sequences, .logit_rows = rows, .sampling = {}},
        kv_cache_->layers(), nullptr);
  }));
}

}  // namespace qserve::worker::exec
