// The draw itself: the largest of x - log(-log(u)) over the ids that pass, u by Philox4x32-10
// (common/philox.h) of seed, id / 4, position and candidate. Most ids cannot win and cost one
// comparison of their random bits.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/row_math.h"
#include "kernels/cuda/device/sampling_block.h"
#include "kernels/cuda/device/sampling_row.h"
#include "kernels/cuda/device/sampling_select.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

// Word i is that of id 4 * block + i.
QSERVE_DEVICE void Philox(const SamplingRow& row, uint32_t block, uint32_t (&words)[4]) {
  uint32_t counter[4] = {block, row.position, row.candidate, 0};
  uint32_t key[2] = {row.seed_low, row.seed_high};
  QSERVE_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = MultiplyHigh(counter[0], 0xD2511F53u);
    const uint32_t low0 = counter[0] * 0xD2511F53u;
    const uint32_t high1 = MultiplyHigh(counter[2], 0xCD9E8D57u);
    const uint32_t low1 = counter[2] * 0xCD9E8D57u;
    counter[0] = high1 ^ counter[1] ^ key[0];
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ key[1];
    counter[3] = low0;
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  QSERVE_UNROLL
  for (int i = 0; i < 4; ++i) words[i] = counter[i];
}

// x plus its Gumbel variate; u = (bits / 2^9 + 1/2) / 2^23 is never 0 or 1.
QSERVE_DEVICE float GumbelKey(float x, uint32_t bits) {
  const float u = (static_cast<float>(bits >> 9) + 0.5f) * 0x1p-23f;
  return x - Logarithm(-Logarithm(u));
}

// The id drawn; `largest` is the row's (key, id) maximum, which is finite and passes every filter.
template <int kThreads>
QSERVE_DEVICE int32_t DrawId(const LogitRow& logits, const SamplingRow& row, const Cut& cut,
                             const KeyedId& largest, uint32_t* scratch) {
  const float max = ValueOf(largest.key);
  uint32_t words[4];
  Philox(row, static_cast<uint32_t>(largest.id) / 4, words);
  // Everybody begins with the largest value's key, so that few others need a logarithm.
  float best = GumbelKey(max, largest.id % 4 < 2 ? (largest.id % 4 == 0 ? words[0] : words[1])
                                                 : (largest.id % 4 == 2 ? words[2] : words[3]));
  int32_t best_id = largest.id;
  VisitGroups<kThreads>(logits, [&](int first, const float(&x)[4]) {
    // To win, an id needs -log(u) <= exp(x - best), and 1 - u is less than -log(u). The slack is
    // more than what rounding can do.
    const float top = Max(Max(x[0], x[1]), Max(x[2], x[3]));
    const float slack = Fma(Abs(best), 0x1p-20f, 0.01f);
    const float bound = Exp2(((top - best) + slack) * 1.4427f + 0.001f);
    if (bound < 0x1p-24f) return;  // the least that 1 - u can be
    Philox(row, static_cast<uint32_t>(first) / 4, words);
    QSERVE_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float rest = (static_cast<float>(0x7fffffu - (words[j] >> 9)) + 0.5f) * 0x1p-23f;
      if (rest > bound || !Passes(cut, KeyOf(x[j]), first + j)) continue;
      const float key = GumbelKey(x[j], words[j]);
      const int32_t id = first + j;
      if (key < best || (key == best && id >= best_id)) continue;
      if (Exponential(x[j] - max) < row.min_p) continue;
      best = key;
      best_id = id;
    }
  });
  return LargestOfBlock<kThreads>({KeyOf(best), best_id}, scratch).id;
}

}  // namespace qserve::kernels::cuda
