// The attention kernels over fp16 keys and values.
#include "kernels/cuda/attention_launch.h"

namespace qserve::kernels::cuda {

DeviceError LaunchAttentionF16(StreamHandle stream, const AttentionLaunch& launch) {
  return LaunchAttentionFormat<KvFormat::kF16>(stream, launch);
}

}  // namespace qserve::kernels::cuda
