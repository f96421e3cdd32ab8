// From a launch's format and sizes to one of the kernels: shared by the sources that hold the
// kernels of one format each (attention_int4.cu and its like). Host code.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device/attention_kernel.h"
#include "kernels/cuda/device/kernel.h"
#include "kernels/cuda/device/rope_append.h"

namespace qserve::kernels::cuda {

template <KvFormat kFormat, int kHeadDim, int kTiles>
DeviceError LaunchAttentionTiles(StreamHandle stream, const AttentionLaunch& launch) {
  using Kernel = AttentionKernel<kFormat, kHeadDim, kTiles>;
  AttentionParams p;
  p.q = static_cast<const uint16_t*>(launch.q.data);
  p.q_stride = launch.q.stride;
  p.q_type = launch.q.type;
  p.scale_log2e = launch.scale * 1.44269504088896341f;
  p.window = static_cast<int32_t>(launch.sliding_window);
  p.heads = launch.heads;
  p.group = launch.heads / launch.kv.kv_heads;
  p.pages = static_cast<const uint8_t*>(launch.layer.pages);
  p.page_bytes = launch.layer.page_bytes;
  p.tables = launch.block_tables;
  p.items = launch.items;
  p.item_count = launch.item_count;
  p.parts = launch.parts.out;
  p.part_weights = launch.parts.weights;
  p.first_parts = launch.parts.first_parts;
  return Launch<Kernel>(stream, {.x = launch.blocks}, Kernel::Shape::kSharedBytes, p);
}

// kMiddle: the format has kernels of two tiles for this head_dim.
template <KvFormat kFormat, int kHeadDim, bool kMiddle>
DeviceError LaunchAttentionHeads(StreamHandle stream, const AttentionLaunch& launch) {
  constexpr int kWide = kHeadDim > 128 ? 2 : 4;
  if (launch.tiles == 1) return LaunchAttentionTiles<kFormat, kHeadDim, 1>(stream, launch);
  if (launch.tiles == kWide) return LaunchAttentionTiles<kFormat, kHeadDim, kWide>(stream, launch);
  if constexpr (kMiddle) {
    if (launch.tiles == 2) return LaunchAttentionTiles<kFormat, kHeadDim, 2>(stream, launch);
  }
  return kInvalidAttention;
}

template <KvFormat kFormat>
DeviceError LaunchAttentionFormat(StreamHandle stream, const AttentionLaunch& launch) {
  constexpr bool kMiddle = kFormat == KvFormat::kInt4;
  switch (launch.kv.head_dim) {
    case 64:
      return LaunchAttentionHeads<kFormat, 64, kMiddle>(stream, launch);
    case 96:
      return LaunchAttentionHeads<kFormat, 96, false>(stream, launch);
    case 128:
      return LaunchAttentionHeads<kFormat, 128, kMiddle>(stream, launch);
    case 256:
      return LaunchAttentionHeads<kFormat, 256, false>(stream, launch);
    default:
      return kInvalidAttention;
  }
}

template <KvFormat kFormat, int kHeadDim>
DeviceError LaunchRopeAppendHeads(StreamHandle stream, const RopeAppendLaunch& launch) {
  using Kernel = RopeAppendKernel<kFormat, kHeadDim>;
  RopeAppendParams p;
  p.qkv = static_cast<uint16_t*>(launch.qkv.data);
  p.stride = launch.qkv.stride;
  p.type = launch.qkv.type;
  p.heads = launch.heads;
  p.kv_heads = launch.kv.kv_heads;
  p.cos_sin = launch.cos_sin;
  p.q_gain = launch.q_gain;
  p.k_gain = launch.k_gain;
  p.epsilon = launch.qk_epsilon;
  p.positions = launch.positions;
  p.pages_of_rows = launch.pages;
  p.pages = static_cast<uint8_t*>(launch.layer.pages);
  p.page_bytes = launch.layer.page_bytes;
  const int vectors = launch.heads + 2 * launch.kv.kv_heads;
  const Grid grid = {static_cast<int>(launch.qkv.rows),
                     (vectors + Kernel::kWarps - 1) / Kernel::kWarps};
  return Launch<Kernel>(stream, grid, Kernel::kSharedBytes, p);
}

template <KvFormat kFormat>
DeviceError LaunchRopeAppendFormat(StreamHandle stream, const RopeAppendLaunch& launch) {
  switch (launch.kv.head_dim) {
    case 64:
      return LaunchRopeAppendHeads<kFormat, 64>(stream, launch);
    case 96:
      return LaunchRopeAppendHeads<kFormat, 96>(stream, launch);
    case 128:
      return LaunchRopeAppendHeads<kFormat, 128>(stream, launch);
    case 256:
      return LaunchRopeAppendHeads<kFormat, 256>(stream, launch);
    default:
      return kInvalidAttention;
  }
}

// One source for each format; LaunchAttention and LaunchRopeAppend choose.
DeviceError LaunchAttentionInt4(StreamHandle stream, const AttentionLaunch& launch);
DeviceError LaunchAttentionInt8(StreamHandle stream, const AttentionLaunch& launch);
DeviceError LaunchAttentionF16(StreamHandle stream, const AttentionLaunch& launch);

}  // namespace qserve::kernels::cuda
