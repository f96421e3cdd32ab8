// One chunk of attention over 16 lanes: the arithmetic of attention_reference.cc, many queries at
// once. Part of float_kernels_impl.h.
#pragma once

#include "kernels/cpu/attention_product.h"
#include "kernels/cpu/float_kernels.h"
#include "kernels/cpu/kv_page.h"
#include "kernels/cpu/vec_math.h"

namespace qserve::kernels::cpu {

// What any query of the chunk sees.
struct Visible {
  int first;
  int last;
};
template <class V>  // each translation unit has its own
Visible AnyVisible(const AttentionChunk& chunk) {
  Visible any{kAttentionChunkTokens, 0};
  for (int q = 0; q < chunk.queries; ++q) {
    if (chunk.first[q] >= chunk.last[q]) continue;
    any.first = chunk.first[q] < any.first ? chunk.first[q] : any.first;
    any.last = chunk.last[q] > any.last ? chunk.last[q] : any.last;
  }
  return any;
}

// Fetches the scales and minimums of one head in a page.
template <class V>
void FetchParameters(const uint8_t* head, const KvPageLayout& layout) {
  for (int64_t at = layout.key_scales; at < layout.head_bytes; at += 64)
    __builtin_prefetch(head + at, 0, 2);
}

template <class V, KvFormat kFormat>
void ScoreTiles(const AttentionChunk& chunk, Visible any) {
  const KvPageLayout layout(kFormat, chunk.head_dim);
  for (int tile = any.first / kKvPageTokens; tile * kKvPageTokens < any.last; ++tile) {
    const int start = tile * kKvPageTokens;
    const int first = any.first > start ? any.first - start : 0;
    const int end = any.last - start < kKvPageTokens ? any.last - start : kKvPageTokens;
    const uint8_t* page = chunk.pages[tile];
    FetchParameters<V>(page, layout);
    const uint8_t* values = page + layout.ValueRow(first);
    PanelProduct product{.x = chunk.x,
                         .x_stride = chunk.head_dim,
                         .queries = chunk.queries,
                         .runs = 1,
                         .rows = {page},
                         .counts = {chunk.head_dim},
                         .ahead = {{values, page + layout.ValueRow(end)}},
                         .row_bytes = layout.key_row,
                         .wide = true,
                         .first = first,
                         .end = end,
                         .sums = chunk.scores + start,
                         .sums_stride = kAttentionChunkTokens};
    Multiply<V, kFormat>(product);
    if constexpr (kFormat == KvFormat::kInt4 || kFormat == KvFormat::kInt8) {
      for (int array = 0; array < 4; ++array) {
        for (int t = first / 16 * 16; t < end; t += 16) {
          const uint8_t* half = page + layout.key_scales + (array * kKvPageTokens + t) * 2;
          V::Store(chunk.parameters + array * kAttentionChunkTokens + start + t, V::LoadHalf(half));
        }
      }
    }
  }
}

// Turns query q's dot products into weights of the values, in place; positions that it does not see
// get 0. Returns what the values' minimums add to every channel.
template <class V, KvFormat kFormat>
float Softmax(const AttentionChunk& chunk, Visible any, int q) {
  constexpr bool kQuantized = kFormat == KvFormat::kInt4 || kFormat == KvFormat::kInt8;
  constexpr int kArray = kAttentionChunkTokens;
  float* scores = chunk.scores + q * int64_t{kArray};
  const int first = chunk.first[q], last = chunk.last[q];
  const int begin = first / 16 * 16, end = (last + 15) / 16 * 16;
  // Groups at the ends may hold positions that are not seen, and memory that nobody has written.
  const auto whole = [first, last](int t) { return first <= t && t + 16 <= last; };
  const auto mask = [first, last](int t) {
    return V::Between(first > t ? first - t : 0, last - t < 16 ? last - t : 16);
  };
  const auto x_sum = V::Set(chunk.x_sum[q]);
  auto largest = V::Set(-__builtin_inff());
  for (int t = begin; t < end; t += 16) {
    auto score = V::Load(scores + t);
    if constexpr (kQuantized) {
      const auto minimum = V::Mul(V::Load(chunk.parameters + kArray + t), x_sum);
      score = V::Fma(V::Load(chunk.parameters + t), score, minimum);
      V::Store(scores + t, score);
    }
    if (!whole(t)) score = V::Select(mask(t), score, V::Set(-__builtin_inff()));
    largest = V::Max(score, largest);
  }
  const float max = V::Largest(largest);
  const auto shift = V::Set(max);
  auto sum = V::Set(0.0f), minimum_sum = V::Set(0.0f);
  for (int t = begin; t < end; t += 16) {
    const auto p_any = VecExpOfNegative<V>(V::Sub(V::Load(scores + t), shift));
    auto p = p_any, weight = p_any;
    if (whole(t)) {
      if constexpr (kQuantized) {
        weight = V::Mul(p, V::Load(chunk.parameters + 2 * kArray + t));
        minimum_sum = V::Fma(p, V::Load(chunk.parameters + 3 * kArray + t), minimum_sum);
      }
    } else {
      const auto visible = mask(t);
      p = V::Keep(visible, p_any);
      weight = p;
      if constexpr (kQuantized) {
        weight = V::Mul(p, V::Keep(visible, V::Load(chunk.parameters + 2 * kArray + t)));
        minimum_sum =
            V::Fma(p, V::Keep(visible, V::Load(chunk.parameters + 3 * kArray + t)), minimum_sum);
      }
    }
    sum = V::Add(sum, p);
    V::Store(scores + t, weight);
  }
  for (int t = any.first / 16 * 16; t < begin; t += 16) V::Store(scores + t, V::Set(0.0f));
  for (int t = end; t < any.last; t += 16) V::Store(scores + t, V::Set(0.0f));
  chunk.max[q] = max;
  chunk.sum[q] = V::Total(sum);
  return kQuantized ? V::Total(minimum_sum) : 0.0f;
}

template <class V, KvFormat kFormat>
void WeighValues(const AttentionChunk& chunk, Visible any) {
  const KvPageLayout layout(kFormat, chunk.head_dim);
  PanelProduct product{.x = chunk.scores + any.first,
                       .x_stride = kAttentionChunkTokens,
                       .queries = chunk.queries,
                       .runs = 0,
                       .rows = {},
                       .counts = {},
                       .ahead = {},
                       .row_bytes = layout.value_row,
                       .wide = true,
                       .first = 0,
                       .end = kKvPanel,
                       .sums = chunk.out,
                       .sums_stride = chunk.head_dim};
  for (int tile = any.first / kKvPageTokens; tile * kKvPageTokens < any.last; ++tile) {
    const int start = tile * kKvPageTokens;
    const int first = any.first > start ? any.first - start : 0;
    const int end = any.last - start < kKvPageTokens ? any.last - start : kKvPageTokens;
    const uint8_t* next = chunk.next_pages[tile];
    const uint8_t* rows = chunk.pages[tile] + layout.ValueRow(first);
    product.rows[product.runs] = rows;
    product.counts[product.runs] = end - first;
    product.ahead[product.runs] = {rows, rows};
    if (next != nullptr) {
      FetchParameters<V>(next, layout);
      product.ahead[product.runs] = {next, next + layout.values};
    }
    ++product.runs;
  }
  for (int c = 0; c < chunk.head_dim; c += kKvPanel) {
    product.wide = chunk.head_dim - c >= kKvPanel;
    Multiply<V, kFormat>(product);
    for (int run = 0; run < product.runs; ++run)
      product.rows[run] += kKvPanel * KvBits(kFormat) / 8;
    product.sums += kKvPanel;
  }
  for (int run = 0; run < product.runs; ++run) {
    const FetchAhead& rest = product.ahead[run];
    for (const uint8_t* at = rest.at; at < rest.end; at += 64) __builtin_prefetch(at, 0, 2);
  }
}

template <class V, KvFormat kFormat>
void ChunkOfFormat(const AttentionChunk& chunk) {
  const Visible any = AnyVisible<V>(chunk);
  if (any.first >= any.last) return;
  ScoreTiles<V, kFormat>(chunk, any);
  for (int q = 0; q < chunk.queries; ++q) {
    if (chunk.first[q] < chunk.last[q]) {
      chunk.offsets[q] = Softmax<V, kFormat>(chunk, any, q);
      continue;
    }
    chunk.offsets[q] = 0;
    for (int t = any.first / 16 * 16; t < any.last; t += 16) {
      V::Store(chunk.scores + q * int64_t{kAttentionChunkTokens} + t, V::Set(0.0f));
    }
  }
  WeighValues<V, kFormat>(chunk, any);
  for (int q = 0; q < chunk.queries; ++q) {
    float* out = chunk.out + q * int64_t{chunk.head_dim};
    const auto offset = V::Set(chunk.offsets[q]), zero = V::Set(0.0f);
    for (int c = 0; c < chunk.head_dim; c += 16) {
      V::Store(out + c, V::Add(V::Add(V::Load(out + c), zero), offset));
    }
  }
}

template <class V>
void AttentionChunkFast(const AttentionChunk& chunk) {
  switch (chunk.format) {
    case KvFormat::kInt4:
      return ChunkOfFormat<V, KvFormat::kInt4>(chunk);
    case KvFormat::kInt8:
      return ChunkOfFormat<V, KvFormat::kInt8>(chunk);
    case KvFormat::kF16:
      return ChunkOfFormat<V, KvFormat::kF16>(chunk);
    case KvFormat::kF32:
      return ChunkOfFormat<V, KvFormat::kF32>(chunk);
  }
}

template <class V>
float ScaleQuery(const float* q, float scale, int n, float* out) {
  auto sum = V::Set(0.0f);
  for (int c = 0; c < n; c += 16) {
    const auto x = V::Mul(V::Load(q + c), V::Set(scale));
    V::Store(out + c, x);
    sum = V::Add(sum, x);
  }
  return V::Total(sum);
}

// total = total * a + part * b where a and b bring both to one maximum.
template <class V>
void MergeParts(const AttentionMerge& merge) {
  constexpr int kMost = AttentionMerge::kQueries;
  const int64_t n = merge.queries;
  const auto total_max = LoadTail<V>(merge.total.max, n, 0.0f);
  const auto part_max = LoadTail<V>(merge.part.max, n, 0.0f);
  const auto max = V::Max(total_max, part_max);
  const auto a = VecExp<V>(V::Sub(total_max, max)), b = VecExp<V>(V::Sub(part_max, max));
  const auto sum = V::Fma(LoadTail<V>(merge.total.sum, n, 0.0f), a,
                          V::Mul(LoadTail<V>(merge.part.sum, n, 0.0f), b));
  float new_max[kMost], new_sum[kMost], factor[kMost], part_factor[kMost];
  V::Store(new_max, max);
  V::Store(new_sum, sum);
  V::Store(factor, a);
  V::Store(part_factor, b);
  for (int q = 0; q < n; ++q) {
    if (merge.how[q] == AttentionMerge::kLeave) continue;
    const bool copy = merge.how[q] == AttentionMerge::kCopy;
    merge.total.max[q] = copy ? merge.part.max[q] : new_max[q];
    merge.total.sum[q] = copy ? merge.part.sum[q] : new_sum[q];
    float* total = merge.total.out + q * int64_t{merge.head_dim};
    const float* part = merge.part.out + q * int64_t{merge.head_dim};
    const auto old_times = V::Set(factor[q]), part_times = V::Set(part_factor[q]);
    for (int c = 0; c < merge.head_dim; c += 16) {
      const auto added = V::Load(part + c);
      V::Store(total + c,
               copy ? added : V::Fma(V::Load(total + c), old_times, V::Mul(added, part_times)));
    }
  }
}

template <class V>
void MultiplyRow(const float* x, float factor, int n, float* out) {
  for (int c = 0; c < n; c += 16) V::Store(out + c, V::Mul(V::Load(x + c), V::Set(factor)));
}

}  // namespace qserve::kernels::cpu
