// Launch of the sampling kernel, see sampling.h.
#include "kernels/cuda/sampling.h"

#include "kernels/cuda/device/kernel.h"
#include "kernels/cuda/device/sampling_kernel.h"

namespace qserve::kernels::cuda {
namespace {

template <class Kernel>
DeviceError LaunchAs(StreamHandle stream, const SamplingLaunch& launch) {
  return Launch<Kernel>(stream, {.x = launch.rows}, static_cast<int64_t>(sizeof(SelectShared)),
                        {.logits = launch.logits,
                         .stride = launch.stride,
                         .inputs = launch.inputs,
                         .results = launch.results,
                         .sampled_ids = launch.sampled_ids,
                         .masks = launch.masks,
                         .mask_stride = launch.mask_stride,
                         .vocab_size = launch.vocab_size});
}

}  // namespace

DeviceError LaunchSampling(StreamHandle stream, const SamplingLaunch& launch) {
  constexpr DeviceError kInvalidValue = 1;
  if (launch.vocab_size <= 0 || launch.vocab_size > kMaxVocabulary) return kInvalidValue;
  if (launch.rows == 0) return 0;
  // By the vocabulary alone: the order of a sum depends on it.
  constexpr int32_t kSmallVocabulary = 8192;
  return launch.vocab_size <= kSmallVocabulary ? LaunchAs<SampleKernel<128>>(stream, launch)
                                               : LaunchAs<SampleKernel<512>>(stream, launch);
}

}  // namespace qserve::kernels::cuda
