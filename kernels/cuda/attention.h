// Launches of attention and of what prepares it: RoPE with the storing of keys and values,
// attention over stored pages, and the merging of what attention computed in parts. Called by
// CudaBackend on the thread that owns the stream; nothing is allocated and nobody waits. All
// pointers are device memory aligned to 16 bytes at least; row strides of q and qkv are multiples
// of 8 elements.
//
// A step: PlanAttention (attention_plan.h) on the host, its arrays copied to the device; then for
// every layer LaunchRopeAppend, LaunchAttention for each non-empty list of items, and
// LaunchAttentionCombine. The lists' lengths are read on the device, so that recorded launches
// serve other steps of the same bucket.
//
// Formats int4, int8, fp16; head_dim 64, 96, 128, 256; kInvalidAttention for anything else.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attention_item.h"
#include "kernels/cuda/stream.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

inline constexpr DeviceError kInvalidAttention = 1;  // as cudaErrorInvalidValue
// Of a row: it is in shared memory while it is rounded.
inline constexpr int64_t kMaxAttentionColumns = 24 << 10;

// As RopeAppendArgs (kernels/backend.h), for qkv in fp16 or bf16: arithmetic in fp32 with the bits
// of the CPU's, q rounded once to its type, codes of k and v by the rule of
// kernels/quant/kv_quant.h.
struct RopeAppendLaunch {
  FloatMatrix qkv;  // [rows, (heads + 2 kv_heads) * head_dim]
  int heads = 0;
  KvShape kv;
  const float* cos_sin = nullptr;
  const float* q_gain = nullptr;
  const float* k_gain = nullptr;
  float qk_epsilon = 0;
  const int32_t* positions = nullptr;  // [rows]; negative: the row is left alone
  const int32_t* pages = nullptr;      // [rows], the page of the position
  KvLayer layer;
};
DeviceError LaunchRopeAppend(StreamHandle stream, const RopeAppendLaunch& launch);

// Results of attention before they are merged: for each part and head an output that is not yet
// divided, its maximum and its sum. Part first_parts[r] + i is row r's i-th, in order of positions.
struct AttentionParts {
  float* out = nullptr;                  // [parts, heads, head_dim]
  float* weights = nullptr;              // [parts, heads, 2]: maximum (in units of log 2), sum
  const int32_t* first_parts = nullptr;  // [rows]
  const int32_t* part_counts = nullptr;  // [rows]; 0: a row of padding
};

// Attention of the items' columns, see device/attention_item.h; other rows of q are not read.
struct AttentionLaunch {
  ConstFloatMatrix q;  // fp16 or bf16, [rows, heads * head_dim], rotated
  int heads = 0;
  KvShape kv;
  float scale = 0;
  int64_t sliding_window = 0;
  KvLayer layer;
  const int32_t* block_tables = nullptr;
  const AttentionItem* items = nullptr;
  const int32_t* item_count = nullptr;  // in device memory
  int tiles = 1;   // of 8 query columns, as planned (AttentionTiles, attention_plan.h)
  int blocks = 1;  // of the grid; any number is correct (AttentionBlocks, attention_plan.h)
  AttentionParts parts;
};
DeviceError LaunchAttention(StreamHandle stream, const AttentionLaunch& launch);

// Merges every row's parts in order, divides by the sum and writes the row; rows of padding become
// zeros. Uses part 0 of each row as scratch.
struct AttentionCombineLaunch {
  AttentionParts parts;
  int heads = 0;
  int head_dim = 0;
  Activation out;              // [rows, heads * head_dim]
  int32_t* arrived = nullptr;  // [rows], 0 before the first launch and after each
};
DeviceError LaunchAttentionCombine(StreamHandle stream, const AttentionCombineLaunch& launch);

}  // namespace qserve::kernels::cuda
