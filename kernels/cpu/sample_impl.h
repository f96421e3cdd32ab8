// The passes of sampling over 16 lanes. Part of float_kernels_impl.h.
#pragma once

#include "kernels/cpu/sample.h"
#include "kernels/cpu/vec_math.h"

namespace qserve::kernels::cpu {

template <class V>
RowScan ScanRow(const float* row, int64_t count) {
  constexpr float kLowest = -__builtin_inff();
  RowScan scan;
  auto largest = V::Set(kLowest);
  const auto step = [&](typename V::F x) {
    scan.has_nan = scan.has_nan || V::AnyNan(x);
    largest = V::Max(x, largest);
  };
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) step(V::Load(row + i));
  if (i < count) step(LoadTail<V>(row + i, count - i, kLowest));
  scan.max = V::Largest(largest);
  if (scan.has_nan || !(scan.max > kLowest)) return scan;
  // The first one that is not less than the maximum.
  const auto max = V::Set(scan.max);
  for (i = 0; i + 16 <= count && !V::Any(V::Equal(V::Load(row + i), max)); i += 16) {
  }
  while (row[i] != scan.max) ++i;
  scan.argmax = static_cast<int32_t>(i);
  return scan;
}

template <class V>
float ExpSumRow(const float* row, int64_t count, float max) {
  auto sum = V::Set(0.0f);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    sum = V::Add(sum, VecExp<V>(V::Sub(V::Load(row + i), V::Set(max))));
  if (i < count) {
    const auto tail = LoadTail<V>(row + i, count - i, -__builtin_inff());
    sum = V::Add(sum, VecExp<V>(V::Sub(tail, V::Set(max))));
  }
  return V::Total(sum);
}

template <class V>
void ExpOfRow(const float* row, int64_t count, float max, float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    V::Store(out + i, VecExp<V>(V::Sub(V::Load(row + i), V::Set(max))));
  if (i == count) return;
  const auto tail = LoadTail<V>(row + i, count - i, max);
  StoreTail<V>(out + i, count - i, VecExp<V>(V::Sub(tail, V::Set(max))));
}

template <class V>
void DivideRow(const float* row, int64_t count, float divisor, float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) V::Store(out + i, V::Div(V::Load(row + i), V::Set(divisor)));
  for (; i < count; ++i) out[i] = row[i] / divisor;
}

// Philox4x32-10 (common/philox.h) of 16 consecutive counters; word w of counter l is in lane l of
// words[w].
template <class V>
void Philox16(const GumbelDraw& draw, uint32_t first_counter, typename V::I words[4]) {
  typename V::I c0 = V::Counters(first_counter), c1 = V::SetInt(draw.position);
  typename V::I c2 = V::SetInt(draw.candidate), c3 = V::SetInt(0);
  uint32_t k0 = draw.seed_low, k1 = draw.seed_high;
  for (int round = 0; round < 10; ++round) {
    typename V::I high0, high1;
    const auto low0 = V::MulWide(c0, 0xD2511F53u, &high0);
    const auto low1 = V::MulWide(c2, 0xCD9E8D57u, &high1);
    c0 = V::Xor(V::Xor(high1, c1), V::SetInt(k0));
    c1 = low1;
    c2 = V::Xor(V::Xor(high0, c3), V::SetInt(k1));
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// The best of the 64 ids from `first` on, of which `count` exist. `best` and `best_id` are updated.
template <class V>
void DrawBlock(const GumbelDraw& draw, int64_t first, int64_t count, float* best,
               int32_t* best_id) {
  typename V::I words[4];
  Philox16<V>(draw, static_cast<uint32_t>(first / 4), words);
  float noise[4][16];
  for (int w = 0; w < 4; ++w) {
    const auto zero = V::Set(0.0f);
    const auto inner = V::Sub(zero, VecLog<V>(V::Uniform(words[w])));
    V::Store(noise[w], VecLog<V>(inner));
  }
  for (int64_t i = 0; i < count; ++i) {
    const float x = draw.row[first + i];
    if (x < draw.cut_value || (x == draw.cut_value && first + i > draw.cut_id)) continue;
    const float key = x - noise[i % 4][i / 4];
    if (!(key > *best)) continue;
    if (draw.min_p > 0.0f) {  // rarely reached
      float weight[16];
      V::Store(weight, VecExp<V>(V::Set(x - draw.max)));
      if (weight[0] < draw.min_p) continue;
    }
    *best = key;
    *best_id = static_cast<int32_t>(first + i);
  }
}

template <class V>
int32_t DrawRow(const GumbelDraw& draw) {
  float best = -__builtin_inff();
  int32_t best_id = -1;
  for (int64_t first = 0; first < draw.count; first += 64) {
    const int64_t count = draw.count - first < 64 ? draw.count - first : 64;
    if (count == 64) {  // most blocks cannot win
      const float* row = draw.row + first;
      const auto low = V::Max(V::Load(row), V::Load(row + 16)),
                 high = V::Max(V::Load(row + 32), V::Load(row + 48));
      const float largest = V::Largest(V::Max(low, high));
      if (largest < draw.cut_value || !(largest + kGumbelBound > best)) continue;
    }
    DrawBlock<V>(draw, first, count, &best, &best_id);
  }
  return best_id;
}

}  // namespace qserve::kernels::cpu
