// One chunk of attention over 16 lanes: the arithmetic of attention_reference.cc, many queries at
// once. Part of float_kernels_impl.h.
//
// Scores and outputs are the same loop: sums[q] = sum_i x[q][i] * block[i], i in order, where a
// block is 16 positions (keys) or 16 channels (values) of a page. Codes are widened in registers,
// once for all queries of a pass; with more queries than a pass holds, they are widened once into
// `decoded`, which stays in the first-level cache.
#pragma once

#include "kernels/cpu/float_kernels.h"
#include "kernels/cpu/kv_page.h"
#include "kernels/cpu/vec_math.h"

namespace qserve::kernels::cpu {

template <class V, KvFormat kFormat>
inline typename V::F LoadBlock(const uint8_t* p) {
  if constexpr (kFormat == KvFormat::kInt4) return V::LoadNibbles(p);
  if constexpr (kFormat == KvFormat::kInt8) return V::LoadBytes(p);
  if constexpr (kFormat == KvFormat::kF16) return V::LoadHalf(p);
  if constexpr (kFormat == KvFormat::kF32) return V::Load(reinterpret_cast<const float*>(p));
}

// x [queries] rows `x_stride` apart, `count` blocks in a row for each of `groups` groups; sums
// [queries][groups * 16].
struct BlockProduct {
  const float* x;
  int64_t x_stride;
  int queries;
  const uint8_t* blocks;
  int64_t group_stride;  // bytes between groups of blocks
  int groups;
  int count;
  float* sums;
  int64_t sums_stride;
  bool add;              // to what `sums` holds, else from 0
  const uint8_t* ahead;  // memory of the same size that will be read soon: fetched meanwhile, as
                         // pages defeat the hardware's guess
};

// Fetches the scales and minimums of one head in a page.
template <class V>
void FetchParameters(const uint8_t* head, const KvPageLayout& layout) {
  for (int64_t at = layout.key_scales; at < layout.head_bytes; at += 64)
    __builtin_prefetch(head + at, 0, 2);
}

template <class V, KvFormat kFormat, int kQueries, int kGroups>
inline void MultiplyTile(const BlockProduct& product, int query, int group) {
  constexpr int64_t kBytes = KvPageLayout(kFormat, 16).block_bytes;
  const float* x = product.x + query * product.x_stride;
  const uint8_t* blocks = product.blocks + group * product.group_stride;
  float* sums = product.sums + query * product.sums_stride + group * 16;
  typename V::F sum[kQueries][kGroups];
#pragma GCC unroll 16
  for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      sum[q][g] = product.add ? V::Load(sums + q * product.sums_stride + g * 16) : V::Set(0.0f);
    }
  }
  const int64_t x_stride = product.x_stride, group_stride = product.group_stride;
  const uint8_t* ahead = query == 0 ? product.ahead + group * (product.count * kBytes) : blocks;
  for (int64_t i = 0; i < product.count; ++i) {
    __builtin_prefetch(ahead + i * (kGroups * kBytes), 0, 2);
    typename V::F factor[kQueries];
    if constexpr (kGroups > 1) {  // few queries: keep them, one block at a time
#pragma GCC unroll 16
      for (int q = 0; q < kQueries; ++q) factor[q] = V::Set(x[q * x_stride + i]);
    }
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      const auto codes = LoadBlock<V, kFormat>(blocks + g * group_stride + i * kBytes);
#pragma GCC unroll 16
      for (int q = 0; q < kQueries; ++q) {
        if constexpr (kGroups == 1) factor[q] = V::Set(x[q * x_stride + i]);
        sum[q][g] = V::Fma(factor[q], codes, sum[q][g]);
      }
    }
  }
#pragma GCC unroll 16
  for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) V::Store(sums + q * product.sums_stride + g * 16, sum[q][g]);
  }
}

template <class V, KvFormat kFormat, int kQueries>
inline void MultiplyQueries(const BlockProduct& product, int query) {
  constexpr int kGroups = V::Groups(kQueries);
  int group = 0;
  for (; group + kGroups <= product.groups; group += kGroups) {
    MultiplyTile<V, kFormat, kQueries, kGroups>(product, query, group);
  }
  for (; group < product.groups; ++group)
    MultiplyTile<V, kFormat, kQueries, 1>(product, query, group);
}

template <class V, KvFormat kFormat>
void Multiply(const BlockProduct& product) {
  int query = 0;
  const auto left = [&] { return product.queries - query; };
  for (; left() >= V::kMaxQueries; query += V::kMaxQueries)
    MultiplyQueries<V, kFormat, V::kMaxQueries>(product, query);
  for (; left() >= 4; query += 4) MultiplyQueries<V, kFormat, 4>(product, query);
  for (; left() >= 2; query += 2) MultiplyQueries<V, kFormat, 2>(product, query);
  if (left() >= 1) MultiplyQueries<V, kFormat, 1>(product, query);
}

// As Multiply; widens each group of blocks only once when there are many queries.
template <class V, KvFormat kFormat>
void MultiplyMany(const BlockProduct& product, float* decoded) {
  constexpr int64_t kBytes = KvPageLayout(kFormat, 16).block_bytes;
  if (kFormat == KvFormat::kF32 || product.queries <= V::kMaxQueries)
    return Multiply<V, kFormat>(product);
  for (int g = 0; g < product.groups; ++g) {
    const uint8_t* blocks = product.blocks + g * product.group_stride;
    const uint8_t* ahead = product.ahead + g * (product.count * kBytes);
    for (int64_t i = 0; i < product.count; ++i) {
      __builtin_prefetch(ahead + i * kBytes, 0, 2);
      V::Store(decoded + i * 16, LoadBlock<V, kFormat>(blocks + i * kBytes));
    }
    BlockProduct one = product;
    one.blocks = reinterpret_cast<const uint8_t*>(decoded);
    one.groups = 1;
    one.ahead = one.blocks;
    one.sums = product.sums + g * 16;
    Multiply<V, KvFormat::kF32>(one);
  }
}

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

template <class V, KvFormat kFormat>
void ScoreTiles(const AttentionChunk& chunk, Visible any) {
  const KvPageLayout layout(kFormat, chunk.head_dim);
  for (int tile = any.first / kKvPageTokens; tile * kKvPageTokens < any.last; ++tile) {
    const int start = tile * kKvPageTokens;
    const int first = any.first > start ? (any.first - start) / 16 : 0;
    const int end =
        any.last - start < kKvPageTokens ? (any.last - start + 15) / 16 : kKvPageTokens / 16;
    const uint8_t* page = chunk.pages[tile];
    FetchParameters<V>(page, layout);
    MultiplyMany<V, kFormat>({.x = chunk.x,
                              .x_stride = chunk.head_dim,
                              .queries = chunk.queries,
                              .blocks = page + layout.KeyBlock(first, 0, chunk.head_dim),
                              .group_stride = chunk.head_dim * layout.block_bytes,
                              .groups = end - first,
                              .count = chunk.head_dim,
                              .sums = chunk.scores + start + first * 16,
                              .sums_stride = kAttentionChunkTokens,
                              .add = false,
                              .ahead = page + layout.values},
                             chunk.decoded);
    if constexpr (kFormat == KvFormat::kInt4 || kFormat == KvFormat::kInt8) {
      for (int array = 0; array < 4; ++array) {
        for (int g = first; g < end; ++g) {
          const uint8_t* half = page + layout.key_scales + (array * kKvPageTokens + g * 16) * 2;
          V::Store(chunk.parameters + array * kAttentionChunkTokens + start + g * 16,
                   V::LoadHalf(half));
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
    const auto p_any = VecExp<V>(V::Sub(V::Load(scores + t), shift));
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
  for (int tile = any.first / kKvPageTokens; tile * kKvPageTokens < any.last; ++tile) {
    const int start = tile * kKvPageTokens;
    const int first = any.first > start ? any.first - start : 0;
    const int end = any.last - start < kKvPageTokens ? any.last - start : kKvPageTokens;
    const uint8_t* next = chunk.next_pages[tile];
    const uint8_t* blocks = chunk.pages[tile] + layout.ValueBlock(0, first);
    if (next != nullptr) FetchParameters<V>(next, layout);
    MultiplyMany<V, kFormat>({.x = chunk.scores + start + first,
                              .x_stride = kAttentionChunkTokens,
                              .queries = chunk.queries,
                              .blocks = blocks,
                              .group_stride = kKvPageTokens * layout.block_bytes,
                              .groups = chunk.head_dim / 16,
                              .count = end - first,
                              .sums = chunk.out,
                              .sums_stride = chunk.head_dim,
                              .add = start > any.first,
                              .ahead = next != nullptr ? next : blocks},
                             chunk.decoded);
  }
}

template <class V, KvFormat kFormat>
void ChunkOfFormat(const AttentionChunk& chunk) {
  const Visible any = AnyVisible<V>(chunk);
  if (any.first >= any.last) return;
  ScoreTiles<V, kFormat>(chunk, any);
  float* offsets = chunk.decoded + int64_t{kAttentionChunkTokens} * 16;
  for (int q = 0; q < chunk.queries; ++q) {
    if (chunk.first[q] < chunk.last[q]) {
      offsets[q] = Softmax<V, kFormat>(chunk, any, q);
      continue;
    }
    offsets[q] = 0;
    for (int t = any.first / 16 * 16; t < any.last; t += 16) {
      V::Store(chunk.scores + q * int64_t{kAttentionChunkTokens} + t, V::Set(0.0f));
    }
  }
  WeighValues<V, kFormat>(chunk, any);
  for (int q = 0; q < chunk.queries; ++q) {
    float* out = chunk.out + q * int64_t{chunk.head_dim};
    const auto offset = V::Set(offsets[q]), zero = V::Set(0.0f);
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

template <class V>
void MergeParts(float* total, float a, const float* part, float b, int n) {
  for (int c = 0; c < n; c += 16) {
    V::Store(total + c,
             V::Fma(V::Load(total + c), V::Set(a), V::Mul(V::Load(part + c), V::Set(b))));
  }
}

template <class V>
void MultiplyRow(const float* x, float factor, int n, float* out) {
  for (int c = 0; c < n; c += 16) V::Store(out + c, V::Mul(V::Load(x + c), V::Set(factor)));
}

}  // namespace qserve::kernels::cpu
