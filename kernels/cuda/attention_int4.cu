// The attention kernels over int4 keys and values.
#include "kernels/cuda/attention_launch.h"

namespace qserve::kernels::cuda {

DeviceError LaunchAttentionInt4(StreamHandle stream, const AttentionLaunch& launch) {
  return LaunchAttentionFormat<KvFormat::kInt4>(stream, launch);
}

}  // namespace qserve::kernels::cuda
