// Checks and chooses the attention kernels, and holds those that are small: RoPE with append, and
// the merging of parts. The kernels over pages are in attention_int4.cu, attention_int8.cu and
// attention_f16.cu.
#include "kernels/cuda/attention.h"

#include <algorithm>

#include "kernels/cuda/attention_launch.h"
#include "kernels/cuda/device/attention_combine.h"

namespace qserve::kernels::cuda {
namespace {

bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Rows of q or qkv.
bool GoodRows(const ConstFloatMatrix& m) {
  return m.type != FloatType::kF32 && m.stride % 8 == 0 && Aligned(m.data);
}

bool GoodHeads(int heads, const KvShape& kv, const KvLayer& layer) {
  return kv.kv_heads > 0 && heads > 0 && heads % kv.kv_heads == 0 && Aligned(layer.pages) &&
         layer.page_bytes % 16 == 0;
}

}  // namespace

DeviceError LaunchAttention(StreamHandle stream, const AttentionLaunch& launch) {
  if (!GoodRows(launch.q) || !GoodHeads(launch.heads, launch.kv, launch.layer) ||
      launch.blocks < 1 || launch.sliding_window < 0 || launch.sliding_window > INT32_MAX) {
    return kInvalidAttention;
  }
  switch (launch.kv.format) {
    case KvFormat::kInt4:
      return LaunchAttentionInt4(stream, launch);
    case KvFormat::kInt8:
      return LaunchAttentionInt8(stream, launch);
    case KvFormat::kF16:
      return LaunchAttentionF16(stream, launch);
    default:
      return kInvalidAttention;
  }
}

DeviceError LaunchRopeAppend(StreamHandle stream, const RopeAppendLaunch& launch) {
  if (launch.qkv.rows == 0) return 0;
  if (!GoodRows(launch.qkv) || !GoodHeads(launch.heads, launch.kv, launch.layer)) {
    return kInvalidAttention;
  }
  switch (launch.kv.format) {
    case KvFormat::kInt4:
      return LaunchRopeAppendFormat<KvFormat::kInt4>(stream, launch);
    case KvFormat::kInt8:
      return LaunchRopeAppendFormat<KvFormat::kInt8>(stream, launch);
    case KvFormat::kF16:
      return LaunchRopeAppendFormat<KvFormat::kF16>(stream, launch);
    default:
      return kInvalidAttention;
  }
}

DeviceError LaunchAttentionCombine(StreamHandle stream, const AttentionCombineLaunch& launch) {
  if (launch.out.rows == 0) return 0;
  const int64_t columns = int64_t{launch.heads} * launch.head_dim;
  if (columns != launch.out.cols || launch.head_dim % 4 != 0 || columns > kMaxAttentionColumns) {
    return kInvalidAttention;
  }
  AttentionCombineParams p;
  p.parts = launch.parts.out;
  p.weights = launch.parts.weights;
  p.first_parts = launch.parts.first_parts;
  p.part_counts = launch.parts.part_counts;
  p.heads = launch.heads;
  p.head_dim = launch.head_dim;
  p.out = launch.out;
  p.arrived = launch.arrived;
  // Few rows share the device's multiprocessors, many have enough with one block each.
  constexpr int64_t kManyRows = 256;
  const auto blocks_of = [columns](int64_t width) { return (columns + width - 1) / width; };
  const int64_t blocks =
      launch.out.rows >= kManyRows
          ? 1
          : std::clamp(kManyRows / launch.out.rows, blocks_of(AttentionCombine::kBlockColumns),
                       blocks_of(AttentionCombine::kSlice));
  return Launch<AttentionCombine>(stream,
                                  {static_cast<int>(launch.out.rows), static_cast<int>(blocks)},
                                  AttentionCombine::SharedBytes(columns, blocks > 1), p);
}

}  // namespace qserve::kernels::cuda
