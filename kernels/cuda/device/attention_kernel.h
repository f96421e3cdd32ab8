// Causal attention of query columns over stored keys and values, on tensor cores. Launched through
// kernels/cuda/attention.h; the plan is attention_plan.h's.
//
// A column is one row of the step and one query head. Its bits depend on its q and on what is
// stored, not on the columns beside it nor on the number of tiles. With x = fp16(q * (scale * log2
// e)), and for every chunk of 256 absolute positions that it sees something of:
//   s[t] = key_scale[t] * sum_c x[c] code[t][c] + key_min[t] * sum_c x[c]    (mma, fp32 sums)
//   m = max s;  p[t] = exp2(s[t] - m);  l = sum p[t];  w[t] = fp16(p[t] * value_scale[t] * boost)
//   o[c] = sum_t w[t] code[t][c] / boost + sum_t p[t] value_min[t]           (mma, fp32 sums)
// Chunks are merged in order: M' = max(M, m), a = exp2(M - M'), b = exp2(m - M'), L' = fma(L, a, l
// * b), O' = fma(O, a, o * b), beginning with M = -infinity, L = O = 0. Positions not seen count as
// s = -infinity; what is stored there is never used.
//
// A block has four warps. Scores: warp w takes the tokens 16 w to 16 w + 15 of each page, tokens
// being rows and query columns columns of the product. Weights go through shared memory. Outputs:
// warp w takes a quarter of the channels and all tokens. Two barriers a chunk; pages come by
// asynchronous copies, several steps ahead (attention_ring.h). Blocks take every GridX()-th item.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attention_fragment.h"
#include "kernels/cuda/device/attention_params.h"
#include "kernels/cuda/device/attention_ring.h"
#include "kernels/cuda/device/attention_shape.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

// One warp's view of its block's work.
template <class Shape>
class AttentionWarp {
 public:
  QSERVE_DEVICE AttentionWarp(const AttentionParams& p, uint8_t* shared, int count)
      : p_(p),
        shared_(shared),
        ring_({p.pages, p.page_bytes, p.tables, p.items, count}, shared),
        warp_(WarpId()),
        lane_(LaneId()),
        g_(LaneId() / 4),
        c_(LaneId() % 4),
        columns_(reinterpret_cast<float*>(shared + Shape::kColumnState) +
                 WarpId() * Shape::kColumnStates * Shape::kColumns) {}

  QSERVE_DEVICE void RunItem(const AttentionItem& item) {
    item_ = item;
    last_position_ = item.position + (item.head + item.columns - 1) / p_.group;
    StartColumns();
    for (int begin = item.page_begin; begin < item.page_end; begin = chunk_end_) {
      chunk_end_ = ChunkEnd(begin, item.page_end);
      chunk_first_page_ = begin / kChunkPages * kChunkPages;
      first_page_ = begin - chunk_first_page_;
      last_page_ = chunk_end_ - chunk_first_page_;
      QSERVE_UNROLL
      for (int page = 0; page < kChunkPages; ++page) {
        if (HasPage(page)) Score(page);
      }
      ExchangeMaxima();
      Weigh();
      MultiplyValues();
    }
    StoreParts();
  }

 private:
  using Page = typename Shape::Page;
  static constexpr int kTiles = Shape::kColumns / 8;
  static constexpr int kSteps = Shape::kSteps;
  static constexpr int kWarpTiles = Shape::kWarpTiles;
  static constexpr float kInfinity = __builtin_inff();

  struct alignas(8) Pair {
    float first = 0, second = 0;
  };
  // What is kept of each column in shared memory, by each warp for itself; lanes of g = 0 write.
  // The position's bits are those of an integer, -1 where there is no column.
  enum ColumnState { kQuerySum, kNegativeBias, kPosition, kMax, kSum };
  static_assert(kSum + 1 == Shape::kColumnStates);
  QSERVE_DEVICE float& Of(ColumnState state, int column) {
    return columns_[state * Shape::kColumns + column];
  }
  QSERVE_DEVICE Pair PairOf(ColumnState state, int tile) {
    return *reinterpret_cast<const Pair*>(&Of(state, tile * 8 + 2 * c_));
  }

  QSERVE_DEVICE bool HasPage(int page) const { return page >= first_page_ && page < last_page_; }
  QSERVE_DEVICE bool HasTile(int t) const {  // of output channels
    return kAttentionWarps * kWarpTiles == Page::kValueTiles ||
           warp_ * kWarpTiles + t < Page::kValueTiles;
  }
  QSERVE_DEVICE int Token(int page) const { return (chunk_first_page_ + page) * kKvPageTokens; }
  QSERVE_DEVICE float* Maxima() { return reinterpret_cast<float*>(shared_ + Shape::kMaxima); }
  QSERVE_DEVICE float* Sums() { return reinterpret_cast<float*>(shared_ + Shape::kSums); }

  // Queries, their sums, and empty totals.
  QSERVE_DEVICE void StartColumns() {
    QSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      float low = 0, high = 0;
      LoadQueries(tile, &low, &high);
      QSERVE_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        low += ShuffleXor(low, mask);
        high += ShuffleXor(high, mask);
      }
      QSERVE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int column = tile * 8 + 2 * c_ + i;
        const float column_low = ShuffleFrom(low, (2 * c_ + i) * 4);
        const float column_high = ShuffleFrom(high, (2 * c_ + i) * 4);
        if (g_ != 0) continue;
        const int position =
            column < item_.columns ? item_.position + (item_.head + column) / p_.group : -1;
        Of(kQuerySum, column) = column_low + column_high;
        Of(kNegativeBias, column) =
            -Fma(column_low, KeyOperand<Page>::kLowBias, column_high * KeyOperand<Page>::kHighBias);
        Of(kPosition, column) = FloatOf(static_cast<uint32_t>(position));
        Of(kMax, column) = -kInfinity;
        Of(kSum, column) = 0;
      }
      QSERVE_UNROLL
      for (int t = 0; t < kWarpTiles; ++t) {
        QSERVE_UNROLL
        for (int i = 0; i < 4; ++i) out_[t][tile][i] = 0;
      }
    }
    if constexpr (Shape::kSharedQueries) {
      SyncThreads();
    } else {
      SyncWarp();
    }
  }

  // B operands of column `tile` * 8 + g: channels c * head_dim / 4 on, four for every step. low and
  // high: sums of the first two and of the last two of each four.
  QSERVE_DEVICE void LoadQueries(int tile, float* low, float* high) {
    const int column = tile * 8 + g_;
    const bool present = column < item_.columns;
    const int j = item_.head + (present ? column : 0);
    const uint16_t* from = p_.q + (item_.row + j / p_.group) * p_.q_stride +
                           (item_.kv_head * p_.group + j % p_.group) * (kSteps * 16) +
                           c_ * (kSteps * 4);
    QSERVE_UNROLL
    for (int step = 0; step < kSteps; step += 2) {
      const Vec16 v = present ? Load16(from + 4 * step) : Vec16{};
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
      QSERVE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const uint32_t pair = HalfPair(Scaled(words[i] & 0xffffu), Scaled(words[i] >> 16));
        float* sum = i % 2 == 0 ? low : high;
        *sum += LowHalf(pair) + HighHalf(pair);
        if constexpr (!Shape::kSharedQueries) {
          queries_[step + i / 2][tile][i % 2] = pair;
        } else if (tile % kAttentionWarps == warp_) {
          SharedQuery(step + i / 2, tile)[i % 2] = pair;
        }
      }
    }
  }

  // This lane's two words.
  QSERVE_DEVICE uint32_t* SharedQuery(int step, int tile) {
    return reinterpret_cast<uint32_t*>(shared_ + Shape::kQueries) +
           ((step * kTiles + tile) * 32 + lane_) * 2;
  }

  QSERVE_DEVICE void Query(int step, int tile, uint32_t (&b)[2]) {
    if constexpr (Shape::kSharedQueries) {
      LoadWords(reinterpret_cast<const uint8_t*>(SharedQuery(step, tile)), b);
    } else {
      b[0] = queries_[step][tile][0];
      b[1] = queries_[step][tile][1];
    }
  }

  QSERVE_DEVICE float Scaled(uint32_t bits) const {
    const auto half = static_cast<uint16_t>(bits);
    const float x = p_.q_type == FloatType::kF16 ? HalfBitsToFloat(half) : Bf16BitsToFloat(half);
    return x * p_.scale_log2e;
  }

  // Scores of this warp's tokens of a page of the chunk.
  QSERVE_DEVICE void Score(int page) {
    using Operand = KeyOperand<Page>;
    const uint8_t* slot = ring_.Consume();
    uint32_t parameters[2] = {};
    if constexpr (Page::kQuantized) {
      LoadWords(slot + Page::kKeyTile + g_ * 8, parameters);
      LoadWords(slot + Page::kKeyTile + 64 + g_ * 8, value_parameters_[page]);
    }
    QSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const Pair bias = Page::kQuantized ? PairOf(kNegativeBias, tile) : Pair{};
      QSERVE_UNROLL
      for (int i = 0; i < 4; ++i) scores_[page][tile][i] = i % 2 == 0 ? bias.first : bias.second;
    }
    QSERVE_UNROLL
    for (int unit = 0; unit < kSteps / Operand::kUnitSteps; ++unit) {
      uint32_t words[2][Operand::kUnitWords];
      const uint8_t* from = slot + unit * (64 * Page::kKeyUnit) + lane_ * Page::kKeyUnit;
      LoadWords(from, words[0]);
      LoadWords(from + 32 * Page::kKeyUnit, words[1]);
      QSERVE_UNROLL
      for (int step = 0; step < Operand::kUnitSteps; ++step) {
        uint32_t a[4];
        Operand::Expand(words[0], step, &a[0], &a[2]);
        Operand::Expand(words[1], step, &a[1], &a[3]);
        QSERVE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          uint32_t b[2];
          Query(unit * Operand::kUnitSteps + step, tile, b);
          MmaF16(scores_[page][tile], a, b);
        }
      }
    }
    ring_.Release();
    if constexpr (Page::kQuantized) ScaleScores(page, parameters);
    Mask(page);
  }

  QSERVE_DEVICE void ScaleScores(int page, const uint32_t (&parameters)[2]) {
    QSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const Pair query_sum = PairOf(kQuerySum, tile);
      QSERVE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const uint32_t of_token = parameters[i / 2];
        scores_[page][tile][i] =
            Fma(LowHalf(of_token), scores_[page][tile][i],
                HighHalf(of_token) * (i % 2 == 0 ? query_sum.first : query_sum.second));
      }
    }
  }

  // Positions that a column does not see. Parameters of values that no column sees may be anything,
  // and count as 0.
  QSERVE_DEVICE void Mask(int page) {
    const int token = Token(page) + warp_ * 16;
    const bool all_seen =
        token + 15 <= item_.position && (p_.window == 0 || token > last_position_ - p_.window);
    if (all_seen) return;
    QSERVE_UNROLL
    for (int half = 0; half < 2; ++half) {
      if (token + g_ + half * 8 > last_position_) value_parameters_[page][half] = 0;
    }
    QSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const Pair positions = PairOf(kPosition, tile);
      QSERVE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int t = token + g_ + i / 2 * 8;
        const int position =
            static_cast<int>(BitsOf(i % 2 == 0 ? positions.first : positions.second));
        const bool seen = t <= position && (p_.window == 0 || t > position - p_.window);
        if (!seen) scores_[page][tile][i] = -kInfinity;
      }
    }
  }

  // The chunk's maximum of every column, in all warps.
  QSERVE_DEVICE void ExchangeMaxima() {
    float* maxima = Maxima();
    QSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      QSERVE_UNROLL
      for (int i = 0; i < 2; ++i) {
        float largest = -kInfinity;
        QSERVE_UNROLL
        for (int page = 0; page < kChunkPages; ++page) {
          if (!HasPage(page)) continue;
          largest = Max(largest, Max(scores_[page][tile][i], scores_[page][tile][i + 2]));
        }
        QSERVE_UNROLL
        for (int mask = 4; mask < 32; mask *= 2) {
          largest = Max(largest, ShuffleXor(largest, mask));
        }
        if (g_ == 0) maxima[warp_ * Shape::kColumns + tile * 8 + 2 * c_ + i] = largest;
      }
    }
    SyncThreads();
    QSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      QSERVE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float* of_column = maxima + tile * 8 + 2 * c_ + i;
        float largest = of_column[0];
        QSERVE_UNROLL
        for (int w = 1; w < kAttentionWarps; ++w) {
          largest = Max(largest, of_column[w * Shape::kColumns]);
        }
        chunk_max_[tile][i] = largest;
      }
    }
  }

  // Weights to shared memory, [page][tile][64 tokens][8 columns] fp16; sums of this warp's tokens.
  QSERVE_DEVICE void Weigh() {
    QSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const float shift[2] = {SoftmaxShift(chunk_max_[tile][0]), SoftmaxShift(chunk_max_[tile][1])};
      float sum[2] = {}, minimum_sum[2] = {};
      QSERVE_UNROLL
      for (int page = 0; page < kChunkPages; ++page) {
        if (!HasPage(page)) continue;
        uint8_t* to = shared_ + Shape::kWeights +
                      ((page * kTiles + tile) * kKvPageTokens + warp_ * 16 + g_) * 16 + c_ * 4;
        QSERVE_UNROLL
        for (int half = 0; half < 2; ++half) {
          const uint32_t parameters = value_parameters_[page][half];
          float weight[2];
          QSERVE_UNROLL
          for (int i = 0; i < 2; ++i) {
            const float p = Exp2(scores_[page][tile][2 * half + i] - shift[i]);
            sum[i] += p;
            weight[i] = p;
            if constexpr (Page::kQuantized) {
              minimum_sum[i] = Fma(p, HighHalf(parameters), minimum_sum[i]);
              weight[i] = Min(p * (LowHalf(parameters) * kWeightBoost<Page>), 65504.0f);
            }
          }
          *reinterpret_cast<uint32_t*>(to + half * 128) = HalfPair(weight[0], weight[1]);
        }
      }
      StoreSums(tile, sum, minimum_sum);
    }
    SyncThreads();
  }

  QSERVE_DEVICE void StoreSums(int tile, float (&sum)[2], float (&minimum_sum)[2]) {
    float* sums = Sums() + 2 * (warp_ * Shape::kColumns + tile * 8 + 2 * c_);
    QSERVE_UNROLL
    for (int i = 0; i < 2; ++i) {
      QSERVE_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) {
        sum[i] += ShuffleXor(sum[i], mask);
        if constexpr (Page::kQuantized) minimum_sum[i] += ShuffleXor(minimum_sum[i], mask);
      }
      if (g_ != 0) continue;
      sums[2 * i] = sum[i];
      sums[2 * i + 1] = minimum_sum[i];
    }
  }

  // Outputs of this warp's channels, and their merging into the totals.
  QSERVE_DEVICE void MultiplyValues() {
    float products[kWarpTiles][kTiles][4] = {};
    for (int page = first_page_; page < last_page_; ++page) MultiplyPage(page, products);
    QSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      QSERVE_UNROLL
      for (int i = 0; i < 2; ++i) MergeColumn(tile, i, products);
    }
    SyncWarp();
  }

  QSERVE_DEVICE void MultiplyPage(int page, float (&products)[kWarpTiles][kTiles][4]) {
    using Operand = ValueOperand<Page>;
    const uint8_t* slot = ring_.Consume();
    uint32_t words[kWarpTiles][Operand::kWords];
    QSERVE_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t weights[kTiles][4];
      QSERVE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        LoadMatrixX4Transposed(
            weights[tile], shared_ + Shape::kWeights +
                               ((page * kTiles + tile) * kKvPageTokens + pair * 32 + lane_) * 16);
      }
      QSERVE_UNROLL
      for (int t = 0; t < kWarpTiles; ++t) {
        if (!HasTile(t)) break;
        Operand::Load(slot + t * Page::kValueTile, lane_, pair, words[t]);
        QSERVE_UNROLL
        for (int i = 0; i < 2; ++i) {
          uint32_t a[4];
          Operand::Expand(words[t], 2 * pair + i, a);
          if constexpr (!Page::kQuantized) ClearUnseen(page, 2 * pair + i, a);
          QSERVE_UNROLL
          for (int tile = 0; tile < kTiles; ++tile) {
            MmaF16(products[t][tile], a, {weights[tile][2 * i], weights[tile][2 * i + 1]});
          }
        }
      }
    }
    ring_.Release();
  }

  // fp16 values that nobody has written may be NaN, and their weight of 0 does not help.
  QSERVE_DEVICE void ClearUnseen(int page, int step, uint32_t (&a)[4]) const {
    if (Token(page) + kKvPageTokens - 1 <= last_position_) return;
    QSERVE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int t = Token(page) + step * 16 + 2 * c_ + i / 2 * 8;
      if (t > last_position_) a[i] = 0;
      if (t + 1 > last_position_) a[i] &= 0xffffu;
    }
  }

  QSERVE_DEVICE void MergeColumn(int tile, int i, const float (&products)[kWarpTiles][kTiles][4]) {
    const float* sums = Sums() + 2 * (tile * 8 + 2 * c_ + i);
    float sum = sums[0], minimum_sum = sums[1];
    QSERVE_UNROLL
    for (int w = 1; w < kAttentionWarps; ++w) {
      sum += sums[2 * w * Shape::kColumns];
      minimum_sum += sums[2 * w * Shape::kColumns + 1];
    }
    const int column = tile * 8 + 2 * c_ + i;
    const float before = Of(kMax, column), max = Max(before, chunk_max_[tile][i]);
    const float shift = SoftmaxShift(max);
    const float a = Exp2(before - shift), b = Exp2(chunk_max_[tile][i] - shift);
    const float total_sum = Fma(Of(kSum, column), a, sum * b);
    SyncWarp();
    if (g_ == 0) {
      Of(kMax, column) = max;
      Of(kSum, column) = total_sum;
    }
    QSERVE_UNROLL
    for (int t = 0; t < kWarpTiles; ++t) {
      QSERVE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float product = products[t][tile][2 * half + i];
        float chunk = product + 0.0f;  // -0 becomes 0: weights of 0 that others add must not show
        if constexpr (Page::kQuantized) {
          chunk = Fma(product, 1.0f / kWeightBoost<Page>, minimum_sum);
        }
        float& total = out_[t][tile][2 * half + i];
        total = Fma(total, a, chunk * b);
      }
    }
  }

  QSERVE_DEVICE void StoreParts() {
    const int chunk = chunk_first_page_ / kChunkPages;
    QSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      QSERVE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int position = static_cast<int>(BitsOf(Of(kPosition, tile * 8 + 2 * c_ + i)));
        if (position < 0) continue;
        const int seen = p_.window > 0 && position >= p_.window ? position - p_.window + 1 : 0;
        const int first_chunk = seen / kAttentionChunkTokens;
        // Some of a block's rows may not see a chunk.
        const bool unseen = chunk < first_chunk || chunk > position / kAttentionChunkTokens;
        if (item_.whole == 0 && unseen) continue;
        const int j = item_.head + tile * 8 + 2 * c_ + i;
        const int ahead = item_.whole != 0 ? 0 : chunk - first_chunk;
        const int part = p_.first_parts[item_.row + j / p_.group] + ahead;
        StoreColumn(tile, i, int64_t{part} * p_.heads + item_.kv_head * p_.group + j % p_.group);
      }
    }
    SyncWarp();  // the next item's positions are written where these were read
  }

  QSERVE_DEVICE void StoreColumn(int tile, int i, int64_t at) {
    if (warp_ == 0 && g_ == 0) {
      const int column = tile * 8 + 2 * c_ + i;
      *reinterpret_cast<Pair*>(p_.part_weights + 2 * at) = {Of(kMax, column), Of(kSum, column)};
    }
    QSERVE_UNROLL
    for (int t = 0; t < kWarpTiles; ++t) {
      if (!HasTile(t)) break;
      const int channels = (warp_ * kWarpTiles + t) * 16;
      *reinterpret_cast<Pair*>(p_.parts + at * (kSteps * 16) + channels + 2 * g_) = {
          out_[t][tile][i], out_[t][tile][i + 2]};
    }
  }

  const AttentionParams& p_;
  uint8_t* const shared_;
  AttentionRing<Shape> ring_;
  const int warp_, lane_, g_, c_;
  float* const columns_;

  AttentionItem item_;
  int last_position_ = 0;                     // of the item's last column
  int chunk_end_ = 0, chunk_first_page_ = 0;  // in pages
  int first_page_ = 0, last_page_ = 0;        // of the item, within the chunk

  uint32_t queries_[Shape::kSharedQueries ? 1 : kSteps][kTiles][2];
  float scores_[kChunkPages][kTiles][4];
  uint32_t value_parameters_[kChunkPages][2];
  float out_[kWarpTiles][kTiles][4];
  float chunk_max_[kTiles][2];  // of columns tile * 8 + 2 c and the next
};

template <KvFormat kFormat, int kHeadDim, int kTiles>
struct AttentionKernel {
  using Shape = AttentionShape<kFormat, kHeadDim, kTiles>;
  using Params = AttentionParams;
  static constexpr int kThreads = kAttentionThreads;
  static constexpr int kMinBlocks = Shape::kMinBlocks;

  static QSERVE_DEVICE void Run(const Params& p) {
    const int count = *p.item_count;
    AttentionWarp<Shape> warp(p, SharedMemory(), count);
    for (int i = BlockX(); i < count; i += GridX()) warp.RunItem(LoadItem(p.items + i));
  }
};

}  // namespace qserve::kernels::cuda
