// Attention, plain form: the definition of its arithmetic. One row and head at a time, one position
// after another. Called through OpTable `reference`; rows are spread over the pool because it is
// slow.
//
// For one row and head, q scaled first (x = q * scale), X = sum of x over 16 lanes, and for every
// chunk of 256 absolute positions with visible ones:
//   score[t] = fma(key_scale[t], sum_c x[c] * code[t][c], key_min[t] * X)   (a chain of fma over c
//     in order; plain sum for fp formats)
//   m = max score;  p[t] = exp(score[t] - m);  l = sum p[t] over lanes t % 16
//   o[c] = sum_t (p[t] * value_scale[t]) * code[t][c]  (a chain of fma over t in order)  + 0
//     + sum_t p[t] * value_min[t] over lanes
// Both chains take an int4 code times its place (kv_page.h) and their sums are multiplied by the
// inverse: powers of two, so that only a result beyond the range of floats would show it.
// Chunks are merged in order: M' = max(M, m), a = exp(M - M'), b = exp(m - M'), L' = fma(L, a, l *
// b), O' = fma(O, a, o * b). The result is O * (1 / L).
#include <algorithm>
#include <vector>

#include "kernels/cpu/activation_reference.h"
#include "kernels/cpu/float_ops.h"
#include "kernels/cpu/kv_reference.h"
#include "kernels/cpu/math.h"

namespace qserve::kernels::cpu::reference {
namespace {

constexpr int kMaxHeadDim = 256;

// The running result of a row and head, or that of one chunk.
struct Partial {
  float max = 0;
  float sum = 0;
  float out[kMaxHeadDim] = {};
};

struct HeadView {
  const AttentionArgs& args;
  const SequenceSpan& sequence;
  int kv_head;
  KvPageLayout layout;

  const uint8_t* Page(int64_t position) const {
    const int32_t page = sequence.block_table[static_cast<size_t>(position / kKvPageTokens)];
    return KvHead(args.layer, layout, page, kv_head);
  }
};

float Score(const HeadView& view, const float* x, float x_sum, int64_t position) {
  const KvFormat format = view.args.kv.format;
  const int dim = view.args.kv.head_dim;
  const uint8_t* head = view.Page(position);
  const int slot = static_cast<int>(position % kKvPageTokens);
  float dot = 0;
  const auto place = static_cast<float>(KvPlace(format, slot));
  for (int c = 0; c < dim; ++c) {
    const float code = LoadCode(format, head + view.layout.KeyRow(c), kKvPageTokens, slot);
    dot = std::fma(x[c], code * place, dot);
  }
  dot *= 1.0f / place;
  if (!KvQuantized(format)) return dot;
  return std::fma(LoadParameter(head, view.layout, 0, slot), dot,
                  LoadParameter(head, view.layout, 1, slot) * x_sum);
}

// Positions [begin, end), all of one chunk.
Partial Chunk(const HeadView& view, const float* x, float x_sum, int64_t begin, int64_t end) {
  const KvFormat format = view.args.kv.format;
  const bool quantized = KvQuantized(format);
  const int dim = view.args.kv.head_dim;
  float scores[kAttentionChunkTokens];
  Partial chunk;
  chunk.max = -INFINITY;
  for (int64_t t = begin; t < end; ++t) {
    scores[t - begin] = Score(view, x, x_sum, t);
    chunk.max = Max(scores[t - begin], chunk.max);
  }
  LaneSum sum, minimum_sum;
  for (int64_t t = begin; t < end; ++t) {
    const uint8_t* head = view.Page(t);
    const int slot = static_cast<int>(t % kKvPageTokens);
    const float p = Exp(scores[t - begin] - chunk.max);
    sum.Add(t, p);
    float weight = p;
    if (quantized) {
      minimum_sum.AddProduct(t, p, LoadParameter(head, view.layout, 3, slot));
      weight = p * LoadParameter(head, view.layout, 2, slot);
    }
    for (int c = 0; c < dim; ++c) {
      const float code = LoadCode(format, head + view.layout.ValueRow(slot), dim, c);
      const auto place = static_cast<float>(KvPlace(format, c));
      chunk.out[c] = std::fma(weight, code * place, chunk.out[c]);
    }
  }
  chunk.sum = sum.Total();
  const float offset = quantized ? minimum_sum.Total() : 0.0f;
  // + 0 makes -0 into 0: adding positions of weight 0, as blocks of rows do, must not show even
  // there.
  for (int c = 0; c < dim; ++c) {
    const auto place = static_cast<float>(KvPlace(format, c));
    chunk.out[c] = (chunk.out[c] * (1.0f / place) + 0.0f) + offset;
  }
  return chunk;
}

void Merge(Partial& total, const Partial& chunk, int dim) {
  const float max = Max(total.max, chunk.max);
  const float a = Exp(total.max - max), b = Exp(chunk.max - max);
  total.max = max;
  total.sum = std::fma(total.sum, a, chunk.sum * b);
  for (int c = 0; c < dim; ++c) total.out[c] = std::fma(total.out[c], a, chunk.out[c] * b);
}

void Head(const HeadView& view, const float* q, int64_t position, float* out) {
  const int dim = view.args.kv.head_dim;
  float x[kMaxHeadDim];
  LaneSum x_sum;
  for (int c = 0; c < dim; ++c) {
    x[c] = q[c] * view.args.scale;
    x_sum.Add(c, x[c]);
  }
  const int64_t window = view.args.sliding_window;
  const int64_t first = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
  Partial total;
  bool started = false;
  for (int64_t begin = first; begin <= position;) {
    const int64_t next = (begin / kAttentionChunkTokens + 1) * kAttentionChunkTokens;
    const Partial chunk = Chunk(view, x, x_sum.Total(), begin, std::min(next, position + 1));
    if (started) {
      Merge(total, chunk, dim);
    } else {
      total = chunk;
    }
    started = true;
    begin = next;
  }
  const float inverse = 1.0f / total.sum;
  for (int c = 0; c < dim; ++c) out[c] = total.out[c] * inverse;
}

}  // namespace

Status Attention(OpContext& context, const AttentionArgs& args) {
  const int dim = args.kv.head_dim;
  const int group = args.heads / args.kv.kv_heads;
  for (const SequenceSpan& sequence : args.sequences) {
    const auto rows = [&](int64_t begin, int64_t end, int) {
      std::vector<float> out(static_cast<size_t>(args.heads) * static_cast<size_t>(dim));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = sequence.first_row + i;
        for (int h = 0; h < args.heads; ++h) {
          const HeadView view{args, sequence, h / group, KvPageLayout(args.kv.format, dim)};
          Head(view, args.q.row(row) + h * dim, sequence.first_position + i, out.data() + h * dim);
        }
        WriteRow(args.out, row, out.data());
      }
    };
    context.pool.ParallelFor(sequence.row_count, 1, rows);
  }
  return {};
}

}  // namespace qserve::kernels::cpu::reference
