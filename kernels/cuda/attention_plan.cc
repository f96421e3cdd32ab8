// The plan of a step's attention, see attention_plan.h.
#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <functional>
#include <string>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device/attention_shape.h"

namespace qserve::kernels::cuda {
namespace {

constexpr int64_t kRegistersOfMultiprocessor = 64 << 10;
constexpr int64_t kReservedShared = 1 << 10;  // of each block, by the system
// Items that a list holds beyond one per row, head group and block of columns: splitting.
constexpr int64_t kSplitItemsPerBlock = 16;
constexpr int64_t kMaxRowsOfTile = 32;

int ColumnBlocks(int64_t columns, int tiles) {
  return static_cast<int>((columns + 8 * tiles - 1) / (8 * tiles));
}

struct KernelSize {
  int64_t shared_bytes = 0;
  int min_blocks = 0;
};

template <KvFormat kFormat, int kHeadDim>
KernelSize SizeOfTiles(int tiles) {
  const auto size = [](auto shape) -> KernelSize {
    return {decltype(shape)::kSharedBytes, decltype(shape)::kMinBlocks};
  };
  if (tiles == 1) return size(AttentionShape<kFormat, kHeadDim, 1>());
  if (tiles == 2) return size(AttentionShape<kFormat, kHeadDim, 2>());
  return size(AttentionShape<kFormat, kHeadDim, 4>());
}

template <KvFormat kFormat>
KernelSize SizeOfHead(int head_dim, int tiles) {
  if (head_dim == 64) return SizeOfTiles<kFormat, 64>(tiles);
  if (head_dim == 96) return SizeOfTiles<kFormat, 96>(tiles);
  if (head_dim == 128) return SizeOfTiles<kFormat, 128>(tiles);
  return SizeOfTiles<kFormat, 256>(tiles);
}

KernelSize SizeOf(const KvShape& kv, int tiles) {
  if (kv.format == KvFormat::kInt4) return SizeOfHead<KvFormat::kInt4>(kv.head_dim, tiles);
  if (kv.format == KvFormat::kInt8) return SizeOfHead<KvFormat::kInt8>(kv.head_dim, tiles);
  return SizeOfHead<KvFormat::kF16>(kv.head_dim, tiles);
}

// Some columns of a sequence, for every kv head.
struct Tile {
  const SequenceSpan* sequence = nullptr;
  int32_t table = 0;
  int64_t row = 0;  // within the sequence
  int64_t rows = 1;
  int32_t head = 0;  // its first column, counted from the first of `row`
  int32_t columns = 0;
  int32_t page_begin = 0;
  int32_t page_end = 0;
  bool split = false;

  int32_t first_chunk() const { return page_begin / 4; }
  int32_t chunks() const { return (page_end - 1) / 4 - first_chunk() + 1; }
  // What a block has to do for it, in units of a page; every chunk has a share beside its pages.
  int64_t work() const { return page_end - page_begin + chunks(); }
};

class Planner {
 public:
  Planner(const AttentionModel& model, const AttentionDevice& device, const AttentionLimits& limits,
          AttentionPlan* plan)
      : model_(model),
        device_(device),
        limits_(limits),
        tiles_(ChooseAttentionTiles(model)),
        group_(model.heads / model.kv.kv_heads),
        plan_(*plan) {}

  Status Run(std::span<const SequenceSpan> sequences) {
    Clear();
    for (const SequenceSpan& sequence : sequences) {
      if (sequence.row_count == 0) continue;
      if (Status status = AddRows(sequence); !status.ok()) return status;
      MakeTiles(sequence);
      AddTable(sequence);
    }
    if (std::ssize(plan_.block_tables) > limits_.table_entries) {
      return Status(StatusCode::kOutOfMemory, "attention: the block tables of the step do not fit");
    }
    // Items of unsplit tiles are certain; what is left of the limits may be spent on splitting.
    int64_t spare_parts = limits_.parts;
    for (const SequenceSpan& sequence : sequences) spare_parts -= sequence.row_count;
    ChooseSplits(&narrow_, tiles_.narrow, &spare_parts);
    ChooseSplits(&wide_, tiles_.wide, &spare_parts);
    NumberParts(sequences);
    if (Status status = EmitItems(narrow_, &plan_.narrow); !status.ok()) return status;
    return EmitItems(wide_, &plan_.wide);
  }

 private:
  void Clear() {
    const auto rows = static_cast<size_t>(limits_.rows);
    plan_.narrow.clear();
    plan_.wide.clear();
    plan_.block_tables.clear();
    plan_.positions.assign(rows, -1);
    plan_.pages.assign(rows, 0);
    plan_.first_parts.assign(rows, 0);
    plan_.part_counts.assign(rows, 0);
    plan_.parts = 0;
  }

  int64_t FirstSeen(int64_t position) const {
    return model_.sliding_window > 0 ? std::max<int64_t>(0, position - model_.sliding_window + 1)
                                     : 0;
  }

  Status AddRows(const SequenceSpan& sequence) {
    const int64_t end = sequence.first_position + sequence.row_count;
    if (sequence.first_row < 0 || sequence.first_position < 0 || sequence.row_count < 0 ||
        sequence.first_row + sequence.row_count > limits_.rows || end > INT32_MAX ||
        std::ssize(sequence.block_table) * kKvPageTokens < end) {
      return InvalidArgument("attention: a sequence is outside the step or its block table");
    }
    for (int64_t i = 0; i < sequence.row_count; ++i) {
      const auto row = static_cast<size_t>(sequence.first_row + i);
      const int64_t position = sequence.first_position + i;
      plan_.positions[row] = static_cast<int32_t>(position);
      plan_.pages[row] = sequence.block_table[static_cast<size_t>(position / kKvPageTokens)];
      plan_.part_counts[row] = 1;
    }
    return {};
  }

  void AddTable(const SequenceSpan& sequence) {
    const int64_t end = sequence.first_position + sequence.row_count;
    const int64_t entries = (end + kKvPageTokens - 1) / kKvPageTokens;
    plan_.block_tables.insert(plan_.block_tables.end(), sequence.block_table.begin(),
                              sequence.block_table.begin() + entries);
  }

  // Blocks of columns hold whole rows, or parts of one row, so that splitting one does not concern
  // many others.
  void MakeTiles(const SequenceSpan& sequence) {
    const auto rows_of = [this](int width) {
      return std::clamp<int64_t>(8 * width / group_, 1, kMaxRowsOfTile);
    };
    const bool narrow =
        tiles_.narrow == tiles_.wide || sequence.row_count <= rows_of(tiles_.narrow);
    const int width = narrow ? tiles_.narrow : tiles_.wide;
    for (int64_t row = 0; row < sequence.row_count; row += rows_of(width)) {
      const int64_t rows = std::min(rows_of(width), sequence.row_count - row);
      for (int64_t head = 0; head < rows * group_; head += 8 * width) {
        Tile tile;
        tile.sequence = &sequence;
        tile.table = static_cast<int32_t>(plan_.block_tables.size());
        tile.row = row;
        tile.rows = rows;
        tile.head = static_cast<int32_t>(head);
        tile.columns = static_cast<int32_t>(std::min<int64_t>(8 * width, rows * group_ - head));
        const int64_t first = sequence.first_position + row;
        tile.page_begin = static_cast<int32_t>(FirstSeen(first) / kKvPageTokens);
        tile.page_end = static_cast<int32_t>((first + rows - 1) / kKvPageTokens + 1);
        (narrow ? narrow_ : wide_).push_back(tile);
      }
    }
  }

  // The time of the busiest block if tiles of more than `most_chunks` chunks are split, given that
  // blocks take items in turn, most work first. `works` is scratch.
  int64_t Busiest(const std::vector<Tile>& tiles, int32_t most_chunks, int64_t blocks) {
    works_.clear();
    for (const Tile& tile : tiles) {
      if (tile.chunks() > most_chunks) {
        for (int32_t i = 0; i < tile.chunks(); ++i) works_.push_back(kChunkWork);
      } else {
        works_.push_back(tile.work());
      }
    }
    std::sort(works_.begin(), works_.end(), std::greater<>());
    // Each of them is there once per kv head.
    const int64_t items = std::ssize(works_) * model_.kv.kv_heads;
    int64_t busiest = 0;
    for (int64_t i = 0; i < items; i += blocks) {
      busiest += works_[static_cast<size_t>(i / model_.kv.kv_heads)];
    }
    return busiest;
  }

  // Marks the tiles to be split: those of more chunks than a limit, which is lowered while that
  // makes the step noticeably shorter.
  void ChooseSplits(std::vector<Tile>* tiles, int width, int64_t* spare_parts) {
    if (tiles->empty()) return;
    const int64_t blocks = AttentionBlocks(model_, width, device_);
    int32_t longest = 1;
    for (const Tile& tile : *tiles) longest = std::max(longest, tile.chunks());
    int32_t best = longest;
    int64_t best_time = Busiest(*tiles, longest, blocks);
    int64_t least_time = kChunkWork * model_.kv.kv_heads;
    for (const Tile& tile : *tiles) least_time += tile.work() * model_.kv.kv_heads;
    least_time /= blocks;
    for (int32_t limit = longest / 2; limit >= 1 && best_time * 7 > least_time * 8; limit /= 2) {
      const int64_t time = Busiest(*tiles, limit, blocks);
      if (time * 8 >= best_time * 7) continue;  // parts have to be written and merged
      best = limit;
      best_time = time;
    }
    int64_t spare_items = limits_.items - std::ssize(*tiles) * model_.kv.kv_heads;
    std::vector<size_t> order;  // longest first, should the limits not bear all
    for (size_t i = 0; i < tiles->size(); ++i) {
      if ((*tiles)[i].chunks() > best) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [tiles](size_t a, size_t b) {
      return (*tiles)[a].chunks() > (*tiles)[b].chunks();
    });
    for (const size_t i : order) Split(tiles, i, &spare_items, spare_parts);
  }

  // Blocks of columns of the same row are split together, or its parts would not be the same for
  // all heads; they are neighbours.
  void Split(std::vector<Tile>* tiles, size_t i, int64_t* spare_items, int64_t* spare_parts) {
    const auto same_rows = [tiles](size_t a, size_t b) {
      return (*tiles)[a].sequence == (*tiles)[b].sequence && (*tiles)[a].row == (*tiles)[b].row;
    };
    size_t begin = i, end = i + 1;
    while (begin > 0 && same_rows(begin - 1, i)) --begin;
    while (end < tiles->size() && same_rows(end, i)) ++end;
    const Tile& tile = (*tiles)[i];
    const int64_t items = int64_t{tile.chunks() - 1} * static_cast<int64_t>(end - begin);
    const int64_t parts = int64_t{tile.chunks() - 1} * tile.rows;
    if (tile.split || items * model_.kv.kv_heads > *spare_items || parts > *spare_parts) return;
    *spare_items -= items * model_.kv.kv_heads;
    *spare_parts -= parts;
    for (size_t t = begin; t < end; ++t) (*tiles)[t].split = true;
  }

  void CountParts(const std::vector<Tile>& tiles) {
    for (const Tile& tile : tiles) {
      if (!tile.split) continue;
      for (int64_t i = 0; i < tile.rows; ++i) {
        const int64_t position = tile.sequence->first_position + tile.row + i;
        const int64_t chunks =
            position / kAttentionChunkTokens - FirstSeen(position) / kAttentionChunkTokens + 1;
        plan_.part_counts[static_cast<size_t>(tile.sequence->first_row + tile.row + i)] =
            static_cast<int32_t>(chunks);
      }
    }
  }

  void NumberParts(std::span<const SequenceSpan> sequences) {
    CountParts(narrow_);
    CountParts(wide_);
    for (const SequenceSpan& sequence : sequences) {
      for (int64_t i = 0; i < sequence.row_count; ++i) {
        const auto row = static_cast<size_t>(sequence.first_row + i);
        plan_.first_parts[row] = static_cast<int32_t>(plan_.parts);
        plan_.parts += plan_.part_counts[row];
      }
    }
  }

  Status EmitItems(const std::vector<Tile>& tiles, std::vector<AttentionItem>* items) {
    for (const Tile& tile : tiles) {
      int32_t begin = tile.page_begin;
      while (begin < tile.page_end) {
        const int32_t end =
            tile.split ? std::min((begin / 4 + 1) * 4, tile.page_end) : tile.page_end;
        for (int head = 0; head < model_.kv.kv_heads; ++head) {
          AttentionItem item;
          item.row = static_cast<int32_t>(tile.sequence->first_row + tile.row);
          item.position = static_cast<int32_t>(tile.sequence->first_position + tile.row);
          item.table = tile.table;
          item.page_begin = begin;
          item.page_end = end;
          item.head = tile.head;
          item.columns = static_cast<int16_t>(tile.columns);
          item.whole = tile.split ? 0 : 1;
          item.kv_head = head;
          items->push_back(item);
        }
        begin = end;
      }
    }
    if (std::ssize(*items) > limits_.items || plan_.parts > limits_.parts) {
      return Status(StatusCode::kOutOfMemory, "attention: the step has " +
                                                  std::to_string(items->size()) + " items and " +
                                                  std::to_string(plan_.parts) + " parts, too many");
    }
    std::stable_sort(items->begin(), items->end(),
                     [](const AttentionItem& a, const AttentionItem& b) {
                       return a.page_end - a.page_begin > b.page_end - b.page_begin;
                     });
    return {};
  }

  static constexpr int64_t kChunkWork = 5;  // of a chunk of four pages

  const AttentionModel& model_;
  const AttentionDevice& device_;
  const AttentionLimits& limits_;
  const AttentionTiles tiles_;
  const int64_t group_;
  AttentionPlan& plan_;
  std::vector<Tile> narrow_, wide_;
  std::vector<int64_t> works_;
};

}  // namespace

Status CheckAttentionModel(const AttentionModel& model) {
  const KvShape& kv = model.kv;
  if (model.heads <= 0 || kv.kv_heads <= 0 || model.heads % kv.kv_heads != 0) {
    return InvalidArgument("attention: query heads are no multiple of kv heads");
  }
  if (kv.format == KvFormat::kF32)
    return Unsupported("attention: no fp32 keys and values on a GPU");
  if (kv.head_dim != 64 && kv.head_dim != 96 && kv.head_dim != 128 && kv.head_dim != 256) {
    return Unsupported("attention: head_dim " + std::to_string(kv.head_dim) +
                       "; the GPU has 64, 96, 128 and 256");
  }
  if (int64_t{model.heads} * kv.head_dim > kMaxAttentionColumns) {
    return Unsupported("attention: heads times head_dim exceed " +
                       std::to_string(kMaxAttentionColumns));
  }
  return {};
}

AttentionTiles ChooseAttentionTiles(const AttentionModel& model) {
  const int group = model.heads / model.kv.kv_heads;
  AttentionTiles tiles;
  tiles.wide = model.kv.head_dim > 128 ? 2 : 4;
  const bool has_two =
      tiles.wide == 2 || (model.kv.format == KvFormat::kInt4 && model.kv.head_dim != 96);
  tiles.narrow = group <= 8 ? 1 : group <= 16 && has_two ? 2 : tiles.wide;
  return tiles;
}

int AttentionBlocks(const AttentionModel& model, int tiles, const AttentionDevice& device) {
  const KernelSize size = SizeOf(model.kv, tiles);
  const int64_t by_shared = device.shared_bytes / (size.shared_bytes + kReservedShared);
  const int64_t per = std::clamp<int64_t>(by_shared, 1, size.min_blocks);
  return static_cast<int>(per * device.multiprocessors);
}

AttentionLimits ChooseAttentionLimits(const AttentionModel& model, const AttentionDevice& device,
                                      int64_t rows) {
  const AttentionTiles tiles = ChooseAttentionTiles(model);
  const int64_t group = model.heads / model.kv.kv_heads;
  const int64_t split_items = kSplitItemsPerBlock * AttentionBlocks(model, tiles.narrow, device);
  AttentionLimits limits;
  limits.rows = rows;
  // No sequence has more blocks of columns than it has rows times those of a row.
  limits.items = rows * model.kv.kv_heads * ColumnBlocks(group, tiles.narrow) + split_items;
  // A split item has columns of at least one row, and every kv head has one.
  limits.parts = rows + split_items / model.kv.kv_heads;
  return limits;
}

int64_t AttentionPartBytes(const AttentionModel& model, int64_t parts) {
  return parts * model.heads * model.kv.head_dim * int64_t{sizeof(float)};
}
int64_t AttentionWeightBytes(const AttentionModel& model, int64_t parts) {
  return parts * model.heads * 2 * int64_t{sizeof(float)};
}

Status PlanAttention(const AttentionModel& model, const AttentionDevice& device,
                     const AttentionLimits& limits, std::span<const SequenceSpan> sequences,
                     AttentionPlan* plan) {
  return Planner(model, device, limits, plan).Run(sequences);
}

}  // namespace qserve::kernels::cuda
