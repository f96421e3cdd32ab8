// Launch of the sampling kernel: a block a row, from logits to the drawn id, all in one kernel.
// Called by CudaBackend on the thread that owns the stream. What is drawn how is in the input block
// that PlanSampling (kernels/cuda/sampling_plan.h) makes, so that one recorded launch serves every
// step of up to `rows` rows.
//
// The bits of a row's result depend on its logits, its SampleRow and the vocabulary's size alone.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream.h"

namespace qserve::kernels::cuda {

struct SamplingLaunch {
  // [rows, stride] fp32. Entries of ids that penalties, biases or bans name are changed while the
  // kernel runs and then put back, so nothing else may use these rows meanwhile.
  float* logits = nullptr;
  int64_t stride = 0;
  int32_t vocab_size = 0;      // at most kMaxVocabulary
  int32_t rows = 0;            // blocks launched; the input block says how many of them have a row
  uint8_t* inputs = nullptr;   // the input block, copied here by the backend; aligned to 16 bytes
  uint8_t* results = nullptr;  // the result block, to be copied to the host; aligned to 16 bytes
  int32_t* sampled_ids = nullptr;  // [slots] or null; rows that fail leave theirs
  // Grammar masks, [mask rows, mask_stride] words: bit id % 32 of word id / 32 says that id may
  // come next. Null if no row has one.
  const uint32_t* masks = nullptr;
  int64_t mask_stride = 0;
};
inline constexpr int32_t kMaxVocabulary = 1 << 18;

// 0 if the work was accepted; a vocabulary that is too large is refused with 1
// (cudaErrorInvalidValue).
DeviceError LaunchSampling(StreamHandle stream, const SamplingLaunch& launch);

}  // namespace qserve::kernels::cuda
