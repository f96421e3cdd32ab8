#include "worker/model/llama.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/ops.h"
#include "worker/model/rope.h"

namespace qserve::worker::model {

using kernels::Activation;
using kernels::ConstFloatMatrix;
using kernels::FloatMatrix;
using kernels::Matrix;

namespace {

// Where operations run inside their call, the widest activations are those of so many rows and no
// more: enough for every weight that is fetched to be used at full speed. Elsewhere launching more
// operations would cost more than the memory is worth, and an observer sees whole steps.
constexpr int64_t kFeedForwardRows = 512;

int64_t FeedForwardRows(const kernels::Backend& backend, const LlamaOptions& options) {
  if (backend.info().asynchronous || options.observer != nullptr) return options.max_step_tokens;
  return std::min(kFeedForwardRows, options.max_step_tokens);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Llama>> Llama::Create(const checkpoint::ModelConfig& config,
                                                     const Shard& shard, ModelWeights weights,
                                                     kernels::Backend& backend,
                                                     comm::Communicator& communicator,
                                                     const LlamaOptions& options) {
  QSERVE_CHECK(communicator.rank() == shard.rank && communicator.size() == shard.size);
  QSERVE_CHECK(options.max_step_tokens > 0 && options.max_logit_rows > 0 && options.slots > 0);
  std::unique_ptr<Llama> model(
      new Llama(config, shard, std::move(weights), backend, communicator, options));
  RETURN_IF_ERROR(model->Allocate());
  return model;
}

Llama::Llama(const checkpoint::ModelConfig& config, const Shard& shard, ModelWeights weights,
             kernels::Backend& backend, comm::Communicator& communicator,
             const LlamaOptions& options)
    : config_(config),
      shard_(shard),
      weights_(std::move(weights)),
      backend_(backend),
      communicator_(communicator),
      options_(options),
      feed_forward_rows_(FeedForwardRows(backend, options)) {}

absl::Status Llama::Allocate() {
  const int64_t tokens = options_.max_step_tokens;
  const bool observed = options_.observer != nullptr;
  const LayerWeights& first = weights_.layers.front();
  const kernels::FloatType type = backend_.info().activation_type;
  const auto rows = [&](FloatRows& to, kernels::FloatType element) -> absl::Status {
    ASSIGN_OR_RETURN(to, FloatRows::Create(backend_, element, tokens, config_.hidden_size));
    activation_bytes_ += to.own_bytes();
    return absl::OkStatus();
  };
  const auto input = [&](LinearInputRows& to, int64_t max_rows,
                         const kernels::PackedLinear& weight) -> absl::Status {
    ASSIGN_OR_RETURN(to, LinearInputRows::Create(backend_, max_rows, weight, observed));
    activation_bytes_ += to.own_bytes();
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(rows(residual_, type));
  RETURN_IF_ERROR(rows(delta_, type));
  if (NeedsPartialSums()) RETURN_IF_ERROR(rows(partial_, kernels::FloatType::kF32));
  RETURN_IF_ERROR(AllocateWide());
  RETURN_IF_ERROR(input(block_input_, tokens, *first.qkv));
  RETURN_IF_ERROR(input(attention_output_, tokens, *first.o));
  RETURN_IF_ERROR(input(feed_forward_hidden_, feed_forward_rows_, *first.feed_forward.down));
  RETURN_IF_ERROR(input(head_input_, options_.max_logit_rows, *weights_.lm_head));

  ASSIGN_OR_RETURN(sampled_ids_, ToAbsl(backend_.Allocate(options_.slots * int64_t{sizeof(int32_t)},
                                                          "sampled ids")));
  ASSIGN_OR_RETURN(std::vector<float> table, MakeRopeTable(config_, options_.max_positions));
  const int64_t table_bytes = static_cast<int64_t>(table.size() * sizeof(float));
  ASSIGN_OR_RETURN(cos_sin_, ToAbsl(backend_.Allocate(table_bytes, "rope table")));
  backend_.CopyToDevice(cos_sin_.data(), table.data(), table_bytes);
  activation_bytes_ += sampled_ids_.bytes() + table_bytes;
  if (observed) host_cos_sin_ = std::move(table);
  return absl::OkStatus();
}

// q|k|v is done with before gate|up is made, and that before the logits are.
absl::Status Llama::AllocateWide() {
  const LayerWeights& first = weights_.layers.front();
  const kernels::FloatType type = backend_.info().activation_type;
  const int64_t tokens = options_.max_step_tokens;
  const int64_t qkv = first.qkv->n, gate_up = first.feed_forward.gate_up->n;
  // Rank 0 computes its own columns in place: gathering one rank's logits moves nothing.
  const int64_t logits = shard_.vocab_rows * (shard_.rank == 0 ? shard_.size : 1);
  const int64_t bytes = std::max({tokens * qkv * kernels::BytesOf(type),
                                  feed_forward_rows_ * gate_up * kernels::BytesOf(type),
                                  options_.max_logit_rows * logits * int64_t{sizeof(float)}});
  ASSIGN_OR_RETURN(wide_, ToAbsl(backend_.Allocate(bytes, "activations")));
  activation_bytes_ += bytes;
  qkv_ = FloatRows::Within(wide_, type, tokens, qkv);
  gate_up_ = FloatRows::Within(wide_, type, feed_forward_rows_, gate_up);
  logits_ = FloatRows::Within(wide_, kernels::FloatType::kF32, options_.max_logit_rows, logits);
  return absl::OkStatus();
}

void Llama::Forward(const StepInputs& inputs, std::span<const LayerKv> kv,
                    std::vector<kernels::SampledToken>* results) {
  QSERVE_CHECK(std::ssize(kv) == config_.layers);
  const int64_t tokens = std::ssize(inputs.token_ids);
  Embed(inputs);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    const ConstFloatMatrix before =
        layer == 0 ? ConstFloatMatrix{} : ConstFloatMatrix(delta_.First(tokens));
    Norm(before, weights.input_gain, {}, block_input_.First(tokens));
    Attention(layer, inputs, kv[static_cast<size_t>(layer)]);
    Norm(delta_.First(tokens), weights.post_attention_gain, {}, block_input_.First(tokens));
    FeedForward(layer, tokens);
    ObserveBlockOutput(layer, tokens);
  }
  Logits(inputs);
  Sample(inputs, results);
}

// Each rank knows its own ids and gives zeros for the others: the sum is exact.
void Llama::Embed(const StepInputs& inputs) {
  const FloatMatrix residual = residual_.First(std::ssize(inputs.token_ids));
  const FloatMatrix partial = PartialOf(residual);
  weights_.embedding.LookUp(backend_, inputs.token_ids, sampled_ids_.as<int32_t>(), partial);
  SumOverRanks(partial, residual);
}

// Ranks add fp32 values and round once: where activations are narrower, partial sums have memory
// of their own.
bool Llama::NeedsPartialSums() const {
  return shard_.size > 1 && backend_.info().activation_type != kernels::FloatType::kF32;
}

FloatMatrix Llama::PartialOf(const FloatMatrix& sum) const {
  return NeedsPartialSums() ? partial_.First(sum.rows) : sum;
}

void Llama::SumOverRanks(const FloatMatrix& partial, const FloatMatrix& sum) {
  if (shard_.size == 1) return;
  communicator_.AllReduceSum({partial.row(0), partial.rows, partial.cols, partial.stride}, sum);
}

void Llama::Norm(ConstFloatMatrix delta, const kernels::Buffer& gain, std::span<const int32_t> rows,
                 const Activation& out) {
  const int64_t tokens = delta.data != nullptr ? delta.rows : out.rows;
  kernels::ops::Norm(backend_, {.residual = residual_.First(tokens),
                                .delta = delta,
                                .gain = gain.as<float>(),
                                .epsilon = config_.rms_norm_eps,
                                .rows = rows,
                                .out = out});
}

// block_input_ -> delta_.
void Llama::Attention(int64_t layer, const StepInputs& inputs, const LayerKv& kv) {
  const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  const int64_t tokens = std::ssize(inputs.token_ids);
  const int heads = shard_.local_heads();
  const FloatMatrix qkv = qkv_.First(tokens);
  const Activation input = block_input_.First(tokens), output = attention_output_.First(tokens);
  const FloatMatrix delta = delta_.First(tokens), partial = PartialOf(delta);

  ObserveInput(layer, LinearInput::kQkv, input);
  kernels::ops::Linear(backend_, {.weight = weights.qkv.get(), .x = input, .out = qkv});
  std::vector<float> keys = KeysBeforeRope(tokens);
  kernels::ops::RopeAppend(backend_, {.qkv = qkv,
                                      .heads = heads,
                                      .kv = kv.shape,
                                      .cos_sin = cos_sin_.as<float>(),
                                      .q_gain = weights.q_gain.as<float>(),
                                      .k_gain = weights.k_gain.as<float>(),
                                      .qk_epsilon = config_.rms_norm_eps,
                                      .sequences = inputs.sequences,
                                      .layer = kv.pages});
  ObserveRotated(layer, inputs, std::move(keys));
  const ConstFloatMatrix q = kernels::Columns(qkv, 0, int64_t{heads} * config_.head_dim);
  kernels::ops::Attention(backend_,
                          {.q = q,
                           .heads = heads,
                           .kv = kv.shape,
                           .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                           .sliding_window = config_.sliding_window[static_cast<size_t>(layer)],
                           .sequences = inputs.sequences,
                           .layer = kv.pages,
                           .out = output});
  ObserveInput(layer, LinearInput::kO, output);
  kernels::ops::Linear(backend_, {.weight = weights.o.get(), .x = output, .out = partial});
  SumOverRanks(partial, delta);
}

// block_input_ -> delta_: down(silu(gate) * up), some rows at a time; no row depends on another.
void Llama::FeedForward(int64_t layer, int64_t tokens) {
  const FeedForwardWeights& weights = weights_.layers[static_cast<size_t>(layer)].feed_forward;
  const FloatMatrix delta = delta_.First(tokens), partial = PartialOf(delta);
  for (int64_t row = 0; row < tokens; row += feed_forward_rows_) {
    const int64_t count = std::min(feed_forward_rows_, tokens - row);
    const Activation input = RowsOf(block_input_.First(tokens), row, count);
    const Activation hidden = feed_forward_hidden_.First(count);
    const FloatMatrix gate_up = gate_up_.First(count);
    ObserveInput(layer, LinearInput::kGateUp, input);
    kernels::ops::Linear(backend_, {.weight = weights.gate_up.get(), .x = input, .out = gate_up});
    kernels::ops::SiluMul(backend_, {.gate_up = gate_up, .out = hidden});
    ObserveInput(layer, LinearInput::kDown, hidden);
    kernels::ops::Linear(
        backend_, {.weight = weights.down.get(), .x = hidden, .out = RowsOf(partial, row, count)});
  }
  SumOverRanks(partial, delta);
}

// Final norm and head over the rows whose next token is wanted, and no others.
void Llama::Logits(const StepInputs& inputs) {
  const int64_t rows = std::ssize(inputs.logit_rows);
  logits_view_ = {};
  if (rows == 0) return;
  const Activation input = head_input_.First(rows);
  Norm(delta_.First(std::ssize(inputs.token_ids)), weights_.final_gain, inputs.logit_rows, input);
  const Matrix<float> all = logits_.FirstF32(rows);
  const Matrix<float> local = {all.data, rows, shard_.vocab_rows, all.stride};
  kernels::ops::Linear(backend_, {.weight = weights_.lm_head.get(), .x = input, .out = local});
  communicator_.GatherColumns(AsConst(local), all);
  logits_view_ = AsConst(all);
}

void Llama::Sample(const StepInputs& inputs, std::vector<kernels::SampledToken>* results) {
  backend_.EndRecorded();
  if (inputs.sampling.empty()) return;
  QSERVE_CHECK(inputs.sampling.size() == inputs.logit_rows.size());
  int32_t* ids = sampled_ids_.as<int32_t>();
  if (shard_.rank == 0) {
    kernels::ops::Sample(backend_, {.logits = logits_view_,
                                    .vocab_size = static_cast<int32_t>(config_.vocab_size),
                                    .rows = inputs.sampling,
                                    .sampled_ids = ids,
                                    .results = results});
  }
  communicator_.BroadcastIds(ids, options_.slots);
}

}  // namespace qserve::worker::model
