// A rank's weights on its device: read as slices from a checkpoint, fused (q|k|v, gate|up), packed
// in the backend's order. Called once at start-up by exec/rank.cc, and by the quantizer; afterwards
// only read, by llama.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/embedding.h"
#include "worker/model/sharding.h"

namespace qserve::worker::model {

// --lm-head-dtype.
enum class LmHeadType { kAuto, kFp16, kInt8, kInt4 };

struct WeightOptions {
  LmHeadType lm_head = LmHeadType::kAuto;
  checkpoint::LoadQuantization quantization = checkpoint::LoadQuantization::kNone;
  // Read and quantize ahead of packing, where the backend does not read pieces itself; at most that
  // many weights wait in host memory.
  int reader_threads = 1;
  std::function<void(int64_t done, int64_t total)>
      progress;  // bytes of weights; on the loading thread; may be empty
};

// The feed-forward part stands by itself: a mixture of experts would be another one.
struct FeedForwardWeights {
  std::unique_ptr<kernels::PackedLinear> gate_up;  // rows: gate, then up
  std::unique_ptr<kernels::PackedLinear> down;
};

struct LayerWeights {
  kernels::Buffer input_gain;                  // fp32 [hidden]
  kernels::Buffer post_attention_gain;         // fp32 [hidden]
  kernels::Buffer q_gain, k_gain;              // fp32 [head_dim], empty without q/k norm
  std::unique_ptr<kernels::PackedLinear> qkv;  // rows: q heads, k heads, v heads of this rank
  std::unique_ptr<kernels::PackedLinear> o;
  FeedForwardWeights feed_forward;
};

// All memory belongs to the backend it was loaded through, which must outlive this. The
// checkpoint's file of the embedding may stay open and be read: it must stay as it is.
struct ModelWeights {
  Embedding embedding;
  std::vector<LayerWeights> layers;
  kernels::Buffer final_gain;                      // fp32 [hidden]
  std::unique_ptr<kernels::PackedLinear> lm_head;  // vocab_rows rows, zero beyond the vocabulary
  int64_t device_bytes = 0;
};

// The format in which a device gets the layers' linears.
kernels::WeightFormat LinearFormat(const checkpoint::ModelConfig& config,
                                   checkpoint::LoadQuantization quantization);

// What `options.lm_head` means for this checkpoint: auto is what the quantizer recorded, else int8
// where the model is served quantized and floating point, as stored, where it is not. A precision
// asked for by name is given.
kernels::WeightFormat LmHeadFormat(const checkpoint::ModelConfig& config,
                                   const WeightOptions& options);

// Reads only the shard's slices; where the backend packs pieces, no more than some of them are in
// host memory beside what is packed. Errors: the checkpoint's
// (malformed, missing), the backend's (ResourceExhausted when the device is full, Unimplemented for
// a format it has no kernel for).
absl::StatusOr<ModelWeights> LoadWeights(const checkpoint::Checkpoint& checkpoint,
                                         const Shard& shard, kernels::Backend& backend,
                                         const WeightOptions& options);

}  // namespace qserve::worker::model
