// The product that attention consists of: sums[query][lane] = sum over rows of x[query][row] *
// code[row][lane], rows in order, for the lanes of one panel of a KV page (kv_page.h). Scores are
// this over the channels of 64 positions, outputs over the positions of up to 64 channels. Part of
// float_kernels_impl.h.
//
// A tile of queries and registers keeps its sums in registers over all rows and turns codes into
// floats on the way, once for all its queries: a load with a mask and a conversion for a register
// of int4 codes, which run beside the multiply-adds on other ports. Nothing widened is stored.
#pragma once

#include "kernels/cpu/kv_page.h"

namespace qserve::kernels::cpu {

inline constexpr int kTileQueries = 6;  // at most

// Memory that will be read soon and is fetched meanwhile, since pages defeat the hardware's guess.
struct FetchAhead {
  const uint8_t* at;
  const uint8_t* end;
};

struct PanelProduct {
  const float* x;  // rows of factors, `x_stride` apart; runs take theirs one after another
  int64_t x_stride;
  int queries;
  int runs;  // of rows that lie one after another: a page has its own
  const uint8_t* rows[4];
  int counts[4];
  FetchAhead ahead[4];  // for each run, moved on by what was fetched
  int64_t row_bytes;
  bool wide;       // a panel of 64 lanes, else 32
  int first, end;  // the lanes that are wanted; others may be left as they are
  float* sums;
  int64_t sums_stride;
};

// f(0), f(1) ... with constants for arguments.
template <int kCount, int kFirst = 0, class Function>
[[gnu::always_inline]] inline void Unrolled(const Function& f) {
  if constexpr (kFirst < kCount) {
    f.template operator()<kFirst>();
    Unrolled<kCount, kFirst + 1>(f);
  }
}

// Register kIndex of a row of codes; the words are those of an int4 panel.
template <class V, KvFormat kFormat, int kIndex>
[[gnu::always_inline]] inline typename V::R GetCodes(const uint8_t* row, typename V::Words low,
                                                     typename V::Words high) {
  constexpr int kSkip = kIndex * V::kRegisterLanes;
  if constexpr (kFormat == KvFormat::kInt4) return V::template GetNibbles<kIndex>(low, high);
  if constexpr (kFormat == KvFormat::kInt8) return V::GetBytes(row + kSkip);
  if constexpr (kFormat == KvFormat::kF16) return V::GetHalves(row + 2 * kSkip);
  if constexpr (kFormat == KvFormat::kF32) return V::GetFloats(row + 4 * kSkip);
}

// sum[q][r] += x[q] * code[r], where the factors of queries are x_stride apart.
template <class V, KvFormat kFormat, bool kWide, int kFirst, int kQueries, int kCount>
[[gnu::always_inline]] inline void AddRow(const float* x, int64_t x_stride, const uint8_t* row,
                                          typename V::R (&sum)[kQueries][kCount]) {
  using R = typename V::R;
  typename V::Words low, high;
  if constexpr (kFormat == KvFormat::kInt4) {
    low = V::template GetWords<kWide>(row, 0);
    high = V::template GetWords<kWide>(row, 2);
  }
  const auto get = [&]<int r>() { return GetCodes<V, kFormat, kFirst + r>(row, low, high); };
  if constexpr (kQueries == 1) {
    const R factor = V::Spread(x);
    Unrolled<kCount>(
        [&]<int r>() { sum[0][r] = V::MulAdd(factor, get.template operator()<r>(), sum[0][r]); });
  } else {
    R codes[kCount];
    Unrolled<kCount>([&]<int r>() { codes[r] = get.template operator()<r>(); });
    Unrolled<kQueries>([&]<int q>() {
      const R factor = V::Spread(x + q * x_stride);
      Unrolled<kCount>([&]<int r>() { sum[q][r] = V::MulAdd(factor, codes[r], sum[q][r]); });
    });
  }
}

// Queries [query, query + kQueries), registers [kFirst, kFirst + kCount) of the panel.
template <class V, KvFormat kFormat, bool kWide, int kQueries, int kFirst, int kCount>
void MultiplyTile(PanelProduct& product, int query) {
  using R = typename V::R;
  // Lines that a row fetches: enough that all tiles of a panel fetch as much as the panel is.
  constexpr int kMost = V::TileRegisters(kQueries);
  constexpr int kTiles = (kKvPanel / V::kRegisterLanes + kMost - 1) / kMost;
  constexpr int kFetches = (kKvPanel * KvBits(kFormat) / 8 + 64 * kTiles - 1) / (64 * kTiles);
  R sum[kQueries][kCount];
  Unrolled<kQueries>([&]<int q>() { Unrolled<kCount>([&]<int r>() { sum[q][r] = V::Zero(); }); });
  const int64_t x_stride = product.x_stride, row_bytes = product.row_bytes;
  const float* x = product.x + query * x_stride;
  for (int run = 0; run < product.runs; ++run) {
    const uint8_t* row = product.rows[run];
    const uint8_t* ahead = product.ahead[run].at;
    const uint8_t* end = product.ahead[run].end;
    const int64_t steps = int64_t{product.counts[run]} * kFetches;
    const int64_t even = (end - ahead + steps - 1) / steps, step = even < 64 ? even : 64;
    for (int left = product.counts[run]; left > 0; --left, ++x, row += row_bytes) {
      Unrolled<kFetches>([&]<int f>() { __builtin_prefetch(ahead + f * step, 0, 2); });
      ahead += kFetches * step;
      AddRow<V, kFormat, kWide, kFirst>(x, x_stride, row, sum);
    }
    product.ahead[run].at = ahead < end ? ahead : end;
  }
  Unrolled<kQueries>([&]<int q>() {
    Unrolled<kCount>([&]<int r>() {
      R total = sum[q][r];
      if constexpr (kFormat == KvFormat::kInt4)
        total = V::Times(total, V::template InversePlaces<kFirst + r>());
      V::Put(product.sums + (query + q) * product.sums_stride + (kFirst + r) * V::kRegisterLanes,
             total);
    });
  });
}

// The wanted registers from kFirst on, in tiles of nearly equal size.
template <class V, KvFormat kFormat, bool kWide, int kQueries, int kFirst = 0>
void MultiplyQueries(PanelProduct& product, int query) {
  constexpr int kLeft = (kWide ? kKvPanel : kKvPanel / 2) / V::kRegisterLanes - kFirst;
  if constexpr (kLeft > 0) {
    constexpr int kMost = V::TileRegisters(kQueries);
    constexpr int kTiles = (kLeft + kMost - 1) / kMost;
    constexpr int kCount = (kLeft + kTiles - 1) / kTiles;
    if (kFirst * V::kRegisterLanes < product.end &&
        (kFirst + kCount) * V::kRegisterLanes > product.first)
      MultiplyTile<V, kFormat, kWide, kQueries, kFirst, kCount>(product, query);
    MultiplyQueries<V, kFormat, kWide, kQueries, kFirst + kCount>(product, query);
  }
}

template <class V, KvFormat kFormat, bool kWide>
void MultiplyAll(PanelProduct& product) {
  for (int query = 0; query < product.queries;) {
    const int left = product.queries - query, tiles = (left + kTileQueries - 1) / kTileQueries;
    const int queries = (left + tiles - 1) / tiles;
    switch (queries) {
      case 1:
        MultiplyQueries<V, kFormat, kWide, 1>(product, query);
        break;
      case 2:
        MultiplyQueries<V, kFormat, kWide, 2>(product, query);
        break;
      case 3:
        MultiplyQueries<V, kFormat, kWide, 3>(product, query);
        break;
      case 4:
        MultiplyQueries<V, kFormat, kWide, 4>(product, query);
        break;
      case 5:
        MultiplyQueries<V, kFormat, kWide, 5>(product, query);
        break;
      default:
        MultiplyQueries<V, kFormat, kWide, 6>(product, query);
    }
    query += queries;
  }
}

// Only int4 rows look different in a panel of 32.
template <class V, KvFormat kFormat>
void Multiply(PanelProduct& product) {
  if (product.wide) return MultiplyAll<V, kFormat, true>(product);
  MultiplyAll<V, kFormat, false>(product);
}

}  // namespace qserve::kernels::cpu
