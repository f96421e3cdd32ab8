// The Llama family, written once: Llama 2/3, Mistral, Yi, Qwen1.5/2/2.5 and Qwen3 differ in biases,
// q/k norms, windows, rope and tied embeddings only, which the configuration says. Runs on any
// Backend and any tensor-parallel group. Called by exec/model_executor (serving),
// exec/direct_runner (tests, quantizer) on one thread at a time, which is then also the thread of
// the backend.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/checkpoint/model_config.h"
#include "worker/comm/communicator.h"
#include "worker/model/activation_observer.h"
#include "worker/model/activations.h"
#include "worker/model/sharding.h"
#include "worker/model/weights.h"

namespace qserve::worker::model {

// One layer's keys and values of this rank.
struct LayerKv {
  kernels::KvShape shape;
  kernels::KvLayer pages;
};

// What one step computes; host memory, read during Forward only.
struct StepInputs {
  std::span<const int32_t> token_ids;  // one a row; ~slot: the id last sampled for that slot
  std::span<const kernels::SequenceSpan> sequences;  // cover the rows, in order
  std::span<const int32_t> logit_rows;               // rows whose next token is wanted
  std::span<const kernels::SampleRow>
      sampling;  // one for each of them, or empty: logits only. The same length on all ranks
};

struct LlamaOptions {
  int64_t max_step_tokens = 0;
  int64_t max_logit_rows = 0;  // of one step
  int32_t slots = 0;           // of sampled ids
  int64_t max_positions = 0;
  ActivationObserver* observer = nullptr;  // sees every activation; must outlive the model
};

class Llama {
 public:
  // References must outlive the model; `weights` were loaded for `shard` through `backend`.
  // Allocates everything that Forward needs.
  static absl::StatusOr<std::unique_ptr<Llama>> Create(const checkpoint::ModelConfig& config,
                                                       const Shard& shard, ModelWeights weights,
                                                       kernels::Backend& backend,
                                                       comm::Communicator& communicator,
                                                       const LlamaOptions& options);

  // Issues one step's operations; failures are latched in the backend, so call it inside
  // Backend::Run. On rank 0 with `inputs.sampling`, *results (may be null elsewhere) has the drawn
  // tokens once Run returned. `kv` has one entry a layer.
  void Forward(const StepInputs& inputs, std::span<const LayerKv> kv,
               std::vector<kernels::SampledToken>* results);

  // Logits of the last step's logit_rows on rank 0, [rows, >= vocabulary] (columns beyond it are
  // padding); device memory.
  kernels::Matrix<const float> logits() const { return logits_view_; }

  // Ids last drawn for each slot, the same on every rank once a step is done; device memory
  // [slots].
  const int32_t* sampled_ids() const { return sampled_ids_.as<int32_t>(); }

  const ModelWeights& weights() const { return weights_; }

  // Device memory for the values of the largest step, beside weights and KV cache; what the kernels
  // themselves need for a moment is not in it.
  int64_t activation_bytes() const { return activation_bytes_; }

 private:
  Llama(const checkpoint::ModelConfig& config, const Shard& shard, ModelWeights weights,
        kernels::Backend& backend, comm::Communicator& communicator, const LlamaOptions& options);
  absl::Status Allocate();
  absl::Status AllocateWide();

  void Embed(const StepInputs& inputs);
  bool NeedsPartialSums() const;
  // Where a rank's part of `sum` goes: the sum's own memory, or fp32 memory of its size.
  kernels::FloatMatrix PartialOf(const kernels::FloatMatrix& sum) const;
  void SumOverRanks(const kernels::FloatMatrix& partial, const kernels::FloatMatrix& sum);
  void Norm(kernels::ConstFloatMatrix delta, const kernels::Buffer& gain,
            std::span<const int32_t> rows, const kernels::Activation& out);
  void Attention(int64_t layer, const StepInputs& inputs, const LayerKv& kv);
  void FeedForward(int64_t layer, int64_t tokens);
  void Logits(const StepInputs& inputs);
  void Sample(const StepInputs& inputs, std::vector<kernels::SampledToken>* results);

  // For the observer: nothing happens without one.
  std::vector<float> KeysBeforeRope(int64_t tokens);
  void ObserveInput(int64_t layer, LinearInput linear, const kernels::Activation& x);
  void ObserveRotated(int64_t layer, const StepInputs& inputs, std::vector<float> keys);
  void ObserveBlockOutput(int64_t layer, int64_t tokens);

  const checkpoint::ModelConfig config_;
  const Shard shard_;
  const ModelWeights weights_;
  kernels::Backend& backend_;
  comm::Communicator& communicator_;
  const LlamaOptions options_;
  // Rows that pass the feed-forward part together.
  const int64_t feed_forward_rows_;
  int64_t activation_bytes_ = 0;
  std::vector<float> host_cos_sin_;  // kept for an observer only

  kernels::Buffer cos_sin_;      // [max_positions, head_dim]
  kernels::Buffer sampled_ids_;  // [slots]
  FloatRows residual_;           // [tokens, hidden]
  FloatRows delta_;       // [tokens, hidden]: what o or down adds to the residual, by the next norm
  FloatRows partial_;     // [tokens, hidden]: fp32 parts of a sum over ranks; see NeedsPartialSums
  kernels::Buffer wide_;  // of the three below, of which one at a time is wanted
  FloatRows qkv_;
  FloatRows gate_up_;            // [feed_forward_rows_, ...]
  FloatRows logits_;             // rank 0: every rank's columns side by side; elsewhere this rank's
  LinearInputRows block_input_;  // of qkv and of gate_up
  LinearInputRows attention_output_;
  LinearInputRows feed_forward_hidden_;  // [feed_forward_rows_, ...]
  LinearInputRows head_input_;
  kernels::Matrix<const float> logits_view_;
};

}  // namespace qserve::worker::model
