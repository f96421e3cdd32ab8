// Attention over a table of inner loops: cuts the step into items, items into units, spreads units
// over the pool by cost, and merges what was cut. The arithmetic is that of attention_reference.cc;
// who computes a chunk changes, how it is cut and merged does not.
//
// An item is a block of consecutive rows of one sequence and one kv head with all its query heads.
// Items lie side by side on a line of cost that is dealt out to the threads in equal shares. An
// item within a share runs as one unit, which walks the chunks in order and merges as it goes. One
// that a share ends inside of (a long sequence lies in many shares) is cut into one unit per chunk;
// their parts are kept and merged in order afterwards.
#include <algorithm>
#include <vector>

#include "kernels/cpu/float_run.h"
#include "kernels/cpu/kv_page.h"
#include "kernels/cpu/workspace.h"

namespace qserve::kernels::cpu {
namespace {

constexpr int64_t kQueriesOfItem = 48;  // rows are taken together until they make this many queries
constexpr int64_t kCutsOfShare = 32;    // shares may differ by this part without a cut

struct Item {
  const SequenceSpan* sequence;
  int64_t first_row;  // within the sequence
  int64_t rows;
  int kv_head;
  int64_t first_chunk, end_chunk;
  int64_t cost = 0;
  float* parts = nullptr;  // [chunks][queries * (head_dim + 2)] if it is cut
};

struct Unit {
  int64_t item;
  int64_t chunk;  // or -1: all
  int64_t cost;
};

// One thread's memory.
struct Scratch {
  float* x;
  float* x_sum;
  int32_t* first;
  int32_t* last;
  float* scores;
  float* parameters;
  float* offsets;
  float* part;
  float* total;
};

class AttentionRun {
 public:
  AttentionRun(const FloatKernels& kernels, OpContext& context, const AttentionArgs& args)
      : kernels_(kernels),
        context_(context),
        args_(args),
        dim_(args.kv.head_dim),
        group_(args.heads / args.kv.kv_heads),
        layout_(args.kv.format, dim_) {}

  void Run() {
    MakeItems();
    MakeUnits();
    float* shared = Reserve();
    out_ = args_.out.f32;
    out_stride_ = args_.out.f32_stride;
    if (out_ == nullptr) {
      out_ = shared;
      out_stride_ = args_.out.cols;
      shared += args_.out.rows * args_.out.cols;
    }
    for (Item& item : items_) {
      if (item.parts == nullptr) continue;
      item.parts = shared;
      shared += (item.end_chunk - item.first_chunk) * PartFloats(item);
    }
    RunUnits();
    MergeCutItems();
    QuantizeRows();
  }

 private:
  struct Range {
    int64_t first, last;
  };

  int64_t Queries(const Item& item) const { return item.rows * group_; }
  int64_t PartFloats(const Item& item) const { return Queries(item) * (dim_ + 2); }
  AttentionPart PartAt(float* memory, int64_t queries) const {
    return {memory, memory + queries, memory + 2 * queries};
  }
  int64_t FirstSeen(int64_t position) const {
    return args_.sliding_window > 0 ? std::max<int64_t>(0, position - args_.sliding_window + 1) : 0;
  }
  // Of an item's chunk: its positions times the queries, and one more for reading them.
  int64_t Cost(const Item& item, int64_t chunk) const {
    const Range oldest = Seen(item, 0, chunk), newest = Seen(item, item.rows - 1, chunk);
    return (newest.last - oldest.first) * (Queries(item) + 1);
  }
  int64_t Cost(const Item& item) const {
    int64_t cost = 0;
    for (int64_t c = item.first_chunk; c < item.end_chunk; ++c) cost += Cost(item, c);
    return cost;
  }

  void MakeItems() {
    const int64_t block = std::max<int64_t>(1, kQueriesOfItem / group_);
    for (const SequenceSpan& s : args_.sequences) {
      for (int64_t row = 0; row < s.row_count; row += block) {
        const int64_t rows = std::min(block, s.row_count - row);
        const int64_t first = FirstSeen(s.first_position + row),
                      last = s.first_position + row + rows - 1;
        for (int head = 0; head < args_.kv.kv_heads; ++head) {
          items_.push_back({.sequence = &s,
                            .first_row = row,
                            .rows = rows,
                            .kv_head = head,
                            .first_chunk = first / kAttentionChunkTokens,
                            .end_chunk = last / kAttentionChunkTokens + 1});
        }
        most_queries_ = std::max(most_queries_, rows * group_);
      }
    }
  }

  void MakeUnits() {
    total_cost_ = 0;
    for (Item& item : items_) total_cost_ += item.cost = Cost(item);
    int64_t before = 0;
    for (int64_t i = 0; i < std::ssize(items_); ++i) {
      Item& item = items_[static_cast<size_t>(i)];
      const bool cut = item.end_chunk - item.first_chunk > 1 && ShareEndsInside(before, item.cost);
      before += item.cost;
      if (!cut) {
        units_.push_back({i, -1, item.cost});
        continue;
      }
      shared_floats_ += (item.end_chunk - item.first_chunk) * PartFloats(item);
      item.parts = &cut_mark_;  // its place is known once the block is reserved
      for (int64_t c = item.first_chunk; c < item.end_chunk; ++c)
        units_.push_back({i, c, Cost(item, c)});
    }
    if (args_.out.f32 == nullptr) shared_floats_ += args_.out.rows * args_.out.cols;
  }

  // Whether a share ends in [before, before + cost), by more than a cut is worth away from its
  // ends.
  bool ShareEndsInside(int64_t before, int64_t cost) const {
    const int64_t threads = context_.pool.size();
    const int64_t margin = total_cost_ / (threads * kCutsOfShare);
    const int64_t first = before + margin, last = before + cost - margin;
    if (first >= last) return false;
    // The first share that ends behind `first`.
    const int64_t share = first * threads / total_cost_ + 1;
    return share < threads && share * total_cost_ / threads < last;
  }

  float* Reserve() {
    if (shared_floats_ == 0) return nullptr;
    return static_cast<float*>(
        context_.workspace.Shared(static_cast<size_t>(shared_floats_) * sizeof(float)));
  }

  // Thread t takes the units whose middle falls into its share of the cost.
  void RunUnits() {
    const int64_t threads = context_.pool.size();
    std::vector<int64_t> start(static_cast<size_t>(threads) + 1, std::ssize(units_));
    int64_t before = 0, thread = 0;
    start[0] = 0;
    for (int64_t u = 0; u < std::ssize(units_); ++u) {
      const int64_t cost = units_[static_cast<size_t>(u)].cost;
      const int64_t owner =
          std::min(threads - 1, (2 * before + cost) * threads / (2 * total_cost_));
      while (thread < owner) start[static_cast<size_t>(++thread)] = u;
      before += cost;
    }
    context_.pool.ParallelFor(threads, 1, [&](int64_t begin, int64_t end, int pool_thread) {
      const Scratch scratch = MakeScratch(pool_thread);
      for (int64_t u = start[static_cast<size_t>(begin)]; u < start[static_cast<size_t>(end)];
           ++u) {
        const auto i = static_cast<size_t>(u);
        RunUnit(units_[i], i + 1 < units_.size() ? &units_[i + 1] : nullptr, scratch);
      }
    });
  }

  Scratch MakeScratch(int thread) {
    const int64_t q = (most_queries_ + 15) / 16 * 16;
    const int64_t part = q * (dim_ + 2);
    constexpr int64_t kChunk = kAttentionChunkTokens;
    const int64_t floats = q * dim_ + q + 2 * q + q * kChunk + 4 * kChunk + q + 2 * part;
    auto* p = static_cast<float*>(
        context_.workspace.PerThread(thread, static_cast<size_t>(floats) * sizeof(float)));
    const auto take = [&p](int64_t count) {
      float* taken = p;
      p += count;
      return taken;
    };
    Scratch s{};
    s.x = take(q * dim_);
    s.scores = take(q * kChunk);
    s.parameters = take(4 * kChunk);
    s.offsets = take(q);
    s.part = take(part);
    s.total = take(part);
    s.x_sum = take(q);
    s.first = reinterpret_cast<int32_t*>(take(q));
    s.last = reinterpret_cast<int32_t*>(take(q));
    return s;
  }

  const float* QueryRow(const Item& item, int64_t row) const {
    return args_.q.row(item.sequence->first_row + item.first_row + row) +
           int64_t{item.kv_head} * group_ * dim_;
  }
  float* OutRow(const Item& item, int64_t row) const {
    return out_ + (item.sequence->first_row + item.first_row + row) * out_stride_ +
           int64_t{item.kv_head} * group_ * dim_;
  }

  int64_t FirstChunk(const Unit& unit) const {
    return unit.chunk >= 0 ? unit.chunk : items_[static_cast<size_t>(unit.item)].first_chunk;
  }

  // The page parts of an item's chunk; null beyond the item's last.
  void FindPages(const Item& item, int64_t chunk, const uint8_t* pages[4]) const {
    const int64_t last = item.sequence->first_position + item.first_row + item.rows - 1;
    for (int64_t tile = 0; tile < 4; ++tile) {
      const int64_t index = chunk * (kAttentionChunkTokens / kKvPageTokens) + tile;
      const int32_t page = index * kKvPageTokens <= last
                               ? item.sequence->block_table[static_cast<size_t>(index)]
                               : -1;
      pages[tile] = page >= 0 ? KvHead(args_.layer, layout_, page, item.kv_head)
                              : nullptr;  // < 0: behind the window
    }
  }

  // `next` is what this thread probably does afterwards.
  void RunUnit(const Unit& unit, const Unit* next, const Scratch& scratch) {
    const Item& item = items_[static_cast<size_t>(unit.item)];
    const int64_t queries = Queries(item);
    for (int64_t q = 0; q < queries; ++q) {
      scratch.x_sum[q] = kernels_.scale_query(QueryRow(item, q / group_) + q % group_ * dim_,
                                              args_.scale, dim_, scratch.x + q * dim_);
    }
    const Item* next_item = next != nullptr ? &items_[static_cast<size_t>(next->item)] : nullptr;
    const int64_t next_chunk = next != nullptr ? FirstChunk(*next) : 0;
    if (unit.chunk >= 0) {
      float* memory = item.parts + (unit.chunk - item.first_chunk) * PartFloats(item);
      RunChunk(item, unit.chunk, next_item, next_chunk, scratch, PartAt(memory, queries));
      return;
    }
    const AttentionPart total = PartAt(scratch.total, queries);
    const AttentionPart part = PartAt(scratch.part, queries);
    for (int64_t c = item.first_chunk; c < item.end_chunk; ++c) {
      const bool more = c + 1 < item.end_chunk;
      RunChunk(item, c, more ? &item : next_item, more ? c + 1 : next_chunk, scratch,
               c == item.first_chunk ? total : part);
      if (c > item.first_chunk) Merge(item, c, total, part);
    }
    Finish(item, total);
  }

  // Positions of chunk c that row `row` of the item sees, relative to the chunk; empty if first >=
  // last.
  Range Seen(const Item& item, int64_t row, int64_t chunk) const {
    const int64_t position = item.sequence->first_position + item.first_row + row;
    const int64_t start = chunk * kAttentionChunkTokens;
    return {std::max<int64_t>(0, FirstSeen(position) - start),
            std::min<int64_t>(kAttentionChunkTokens, position + 1 - start)};
  }

  void RunChunk(const Item& item, int64_t c, const Item* next_item, int64_t next_chunk,
                const Scratch& scratch, const AttentionPart& result) {
    const int64_t queries = Queries(item);
    AttentionChunk chunk{.format = args_.kv.format,
                         .head_dim = dim_,
                         .queries = static_cast<int>(queries),
                         .x = scratch.x,
                         .x_sum = scratch.x_sum,
                         .first = scratch.first,
                         .last = scratch.last,
                         .scores = scratch.scores,
                         .parameters = scratch.parameters,
                         .offsets = scratch.offsets,
                         .max = result.max,
                         .sum = result.sum,
                         .out = result.out};
    for (int64_t row = 0; row < item.rows; ++row) {
      const Range seen = Seen(item, row, c);
      for (int64_t q = row * group_; q < (row + 1) * group_; ++q) {
        scratch.first[q] = static_cast<int32_t>(seen.first);
        scratch.last[q] = static_cast<int32_t>(seen.last);
      }
    }
    FindPages(item, c, chunk.pages);
    if (next_item != nullptr) FindPages(*next_item, next_chunk, chunk.next_pages);
    kernels_.attention_chunk(chunk);
  }

  // Adds chunk c to the total. Queries that see nothing of it, or had seen nothing before, are left
  // or copied.
  void Merge(const Item& item, int64_t c, const AttentionPart& total,
             const AttentionPart& part) const {
    const int64_t queries = Queries(item);
    for (int64_t first = 0; first < queries; first += AttentionMerge::kQueries) {
      const int64_t count = std::min<int64_t>(AttentionMerge::kQueries, queries - first);
      AttentionMerge merge{.queries = static_cast<int>(count),
                           .head_dim = dim_,
                           .total = From(total, first),
                           .part = From(part, first)};
      for (int64_t q = 0; q < count; ++q) {
        const int64_t row = (first + q) / group_;
        const Range seen = Seen(item, row, c), earlier = Seen(item, row, c - 1);
        const bool none_before = earlier.first >= earlier.last;  // what is seen is contiguous
        if (seen.first < seen.last)
          merge.how[q] = none_before ? AttentionMerge::kCopy : AttentionMerge::kAdd;
      }
      kernels_.merge(merge);
    }
  }
  AttentionPart From(const AttentionPart& part, int64_t query) const {
    return {part.max + query, part.sum + query, part.out + query * dim_};
  }

  void Finish(const Item& item, const AttentionPart& total) const {
    for (int64_t q = 0; q < Queries(item); ++q) {
      float* out = OutRow(item, q / group_) + q % group_ * dim_;
      kernels_.multiply(total.out + q * dim_, 1.0f / total.sum[q], dim_, out);
    }
  }

  void MergeCutItems() {
    std::vector<const Item*> cut;
    for (const Item& item : items_) {
      if (item.parts != nullptr) cut.push_back(&item);
    }
    context_.pool.ParallelFor(std::ssize(cut), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const Item& item = *cut[static_cast<size_t>(i)];
        const AttentionPart total = PartAt(item.parts, Queries(item));
        for (int64_t c = item.first_chunk + 1; c < item.end_chunk; ++c) {
          Merge(item, c, total,
                PartAt(item.parts + (c - item.first_chunk) * PartFloats(item), Queries(item)));
        }
        Finish(item, total);
      }
    });
  }

  void QuantizeRows() {
    if (args_.out.q == nullptr) return;
    context_.pool.ParallelFor(args_.out.rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        kernels_.quantize_row(out_ + r * out_stride_, args_.out.cols, TargetOf(args_.out, r));
      }
    });
  }

  const FloatKernels& kernels_;
  OpContext& context_;
  const AttentionArgs& args_;
  const int dim_;
  const int group_;
  const KvPageLayout layout_;
  std::vector<Item> items_;
  std::vector<Unit> units_;
  int64_t most_queries_ = 0;
  int64_t total_cost_ = 0;
  int64_t shared_floats_ = 0;
  float cut_mark_ = 0;
  float* out_ = nullptr;
  int64_t out_stride_ = 0;
};

}  // namespace

Status RunAttention(const FloatKernels& kernels, OpContext& context, const AttentionArgs& args) {
  AttentionRun(kernels, context, args).Run();
  return {};
}

}  // namespace qserve::kernels::cpu
