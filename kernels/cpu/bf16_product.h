// The leaf functions of bf16 products by fused multiply-add, written once over a vector type V of
// internal linkage, so that the instantiations have it too. Included by bf16_avx2.cc,
// bf16_avx512.cc (instructions) and bf16_emulated.cc (loops).
//
// V: Float, a register of kLanes fp32; Zero, Load, Store, Broadcast of one, Add, MultiplyAdd; Even
// and Odd of kLanes pairs of bf16, widened.
#pragma once

#include <cstdint>

#include "kernels/cpu/bf16_panel.h"

namespace qserve::kernels::cpu {

// The even (kOdd = 0) or odd columns of one step: as many sums in registers as there are, each
// weight widened once for all tokens.
template <class V, int kTokens, int kOdd>
void SumBf16(const float* x, const uint16_t* w,
             typename V::Float (&sums)[kTokens][kPanelRows / V::kLanes]) {
  constexpr int kRegisters = kPanelRows / V::kLanes;
  for (auto& token : sums) {
    for (auto& sum : token) sum = V::Zero();
  }
  for (int pair = 0; pair < kBf16Columns / 2; ++pair) {
    typename V::Float rows[kRegisters];
    for (int r = 0; r < kRegisters; ++r) {
      const uint16_t* at = w + (pair * kPanelRows + r * V::kLanes) * 2;
      rows[r] = kOdd != 0 ? V::Odd(at) : V::Even(at);
    }
    for (int t = 0; t < kTokens; ++t) {
      const typename V::Float value = V::Broadcast(x + (pair * 2 + kOdd) * kTokens + t);
      for (int r = 0; r < kRegisters; ++r) sums[t][r] = V::MultiplyAdd(rows[r], value, sums[t][r]);
    }
  }
}

template <class V, int kTokens>
void MultiplyBf16Tokens(const Bf16Product& p) {
  constexpr int kRegisters = kPanelRows / V::kLanes;
  const float* x = p.x;
  const uint16_t* w = p.w;
  for (int64_t step = 0; step < p.steps; ++step, x += kBf16Columns * kTokens, w += kBf16Tile) {
    typename V::Float even[kTokens][kRegisters];
    typename V::Float odd[kTokens][kRegisters];
    SumBf16<V, kTokens, 0>(x, w, even);
    SumBf16<V, kTokens, 1>(x, w, odd);
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < kRegisters; ++r) {
        float* c = p.c + t * kPanelRows + r * V::kLanes;
        V::Store(c, V::Add(V::Load(c), V::Add(even[t][r], odd[t][r])));
      }
    }
  }
}

template <class V, int kTokens>
constexpr void AddBf16Functions(Bf16Kernels& kernels) {
  kernels.multiply[kTokens] = &MultiplyBf16Tokens<V, kTokens>;
  if constexpr (kTokens > 1) AddBf16Functions<V, kTokens - 1>(kernels);
}

template <class V, int kMostTokens>
constexpr Bf16Kernels MakeBf16Kernels() {
  Bf16Kernels kernels;
  kernels.tokens = kMostTokens;
  AddBf16Functions<V, kMostTokens>(kernels);
  return kernels;
}

}  // namespace qserve::kernels::cpu
