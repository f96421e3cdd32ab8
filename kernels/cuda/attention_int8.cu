// The attention kernels over int8 keys and values.
#include "kernels/cuda/attention_launch.h"

namespace qserve::kernels::cuda {

DeviceError LaunchAttentionInt8(StreamHandle stream, const AttentionLaunch& launch) {
  return LaunchAttentionFormat<KvFormat::kInt8>(stream, launch);
}

}  // namespace qserve::kernels::cuda
