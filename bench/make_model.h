// Random checkpoints of known shapes, so that speed and memory can be measured anywhere without a
// download. Nothing is quantized: codes are random and scales such that activations stay of order
// one through all layers. Called by `qserve-bench make-model` and tests; blocks, uses threads of
// its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/safetensors.h"

namespace qserve::bench {

struct MakeModelOptions {
  worker::checkpoint::Scheme scheme = worker::checkpoint::Scheme::kQoqGroup128;
  uint32_t seed = 1;
  // Of a kFloat checkpoint's tensors: kF32, kF16 or kBf16. What a QoQ checkpoint does not quantize
  // is fp16.
  worker::checkpoint::Dtype dtype = worker::checkpoint::Dtype::kBf16;
  int threads = 1;
  const std::atomic<bool>* interrupted = nullptr;  // may be null; set: stop soon with Cancelled
};

// Writes config.json, generation_config.json, a tokenizer in which every byte is a token, and the
// weights, into `output`, which must be absent or an empty directory and appears only when
// complete. The same bytes for the same shape and options, whatever `threads`. InvalidArgument:
// unknown shape (with the list). Others as OutputDirectory and SafetensorsWriter.
absl::Status MakeModel(const std::string& shape_name, const std::string& output,
                       const MakeModelOptions& options);

}  // namespace qserve::bench
