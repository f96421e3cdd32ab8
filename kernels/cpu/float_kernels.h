// The inner loops of the floating-point operations, one table of functions per instruction set. The
// operations themselves (float_ops.cc, attention.cc) cut the work, find pages and call these on the
// pool's threads. Arguments are plain pointers, so that the translation units built with an
// instruction set's flags share no inline functions with others.
#pragma once

#include <cstdint>

#include "kernels/cpu/sample.h"
#include "kernels/types.h"

namespace qserve::kernels::cpu {

// Where one row of an Activation goes; null parts are not wanted. `q` points behind the lead.
struct RowTarget {
  int8_t* q = nullptr;
  float* scale = nullptr;
  int32_t* row_sum = nullptr;
};

// One chunk of 256 positions of one kv head, seen by `queries` vectors (rows of a sequence times
// query heads of the kv head).
struct AttentionChunk {
  KvFormat format = KvFormat::kInt4;
  int head_dim = 0;
  int queries = 0;
  const float* x = nullptr;      // [queries][head_dim], times `scale`
  const float* x_sum = nullptr;  // [queries], sums of x
  // Positions of the chunk that each query sees: [first, last) within 0..256; none if first >=
  // last.
  const int32_t* first = nullptr;
  const int32_t* last = nullptr;
  const uint8_t* pages[4] =
      {};  // this kv head's part of each tile's page; null where no query looks
  const uint8_t* next_pages[4] =
      {};  // of the chunk that will be asked for next, to be fetched ahead; may be null
  float* scores = nullptr;      // scratch [queries][256]
  float* parameters = nullptr;  // scratch [4][256]
  float* offsets = nullptr;     // scratch [queries]
  float* max = nullptr;         // results [queries]; meaningless for queries that see nothing
  float* sum = nullptr;
  float* out = nullptr;  // [queries][head_dim]
};

// Results of some queries over some positions: the largest score, the sum of exp(score - max), and
// the values weighed by these, [queries][head_dim].
struct AttentionPart {
  float* max = nullptr;
  float* sum = nullptr;
  float* out = nullptr;
};

// Adds the next chunk's part to a running total, at most 16 queries at once.
struct AttentionMerge {
  static constexpr int kQueries = 16;
  enum How : uint8_t { kLeave, kCopy, kAdd };
  int queries = 0;
  int head_dim = 0;
  How how[kQueries] = {};
  AttentionPart total;
  AttentionPart part;
};

struct FloatKernels {
  void (*embed_row)(FloatType type, const void* table_row, int64_t n, float* out);
  void (*add_row)(float* residual, const float* delta, int64_t n);
  // `out` receives the floats; the int8 row is made by quantize_row.
  void (*norm_row)(const float* x, const float* gain, float epsilon, int64_t n, float* out);
  void (*silu_row)(const float* gate, const float* up, int64_t n, float* out);
  void (*quantize_row)(const float* x, int64_t n, const RowTarget& target);
  // Norm if gain is not null, then rotation, in place; n = head_dim.
  void (*rotate_head)(float* x, int n, const float* gain, float epsilon, const float* cos_sin);
  // Into slot `slot` of this kv head's part of a page.
  void (*store_key)(KvFormat format, const float* x, int n, uint8_t* head, int slot);
  void (*store_value)(KvFormat format, const float* x, int n, uint8_t* head, int slot);
  // out = q * scale; returns the sum over lanes.
  float (*scale_query)(const float* q, float scale, int n, float* out);
  void (*attention_chunk)(const AttentionChunk& chunk);
  void (*merge)(const AttentionMerge& merge);
  void (*multiply)(const float* x, float factor, int n, float* out);
  SamplePasses sample;
};

namespace emulated {
extern const FloatKernels kFloatKernels;
}
namespace avx2 {
extern const FloatKernels kFloatKernels;
}
namespace avx512 {
extern const FloatKernels kFloatKernels;
}

}  // namespace qserve::kernels::cpu
