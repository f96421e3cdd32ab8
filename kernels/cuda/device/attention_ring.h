// The copies of an attention block: pages of keys and values, in the order in which the block will
// use them, some steps ahead and across the borders of chunks and items. Part of
// attention_kernel.h. Every warp copies what it will itself read, so that no barrier of the block
// is needed.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attention_item.h"
#include "kernels/cuda/device/attention_shape.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

// Keys and values, and the work that is to be done on them.
struct AttentionSource {
  const uint8_t* pages = nullptr;
  int64_t page_bytes = 0;
  const int32_t* tables = nullptr;
  const AttentionItem* items = nullptr;
  int count = 0;  // of items
};

QSERVE_DEVICE AttentionItem LoadItem(const AttentionItem* from) {
  const Vec16 a = Load16(from);
  const Vec16 b = Load16(reinterpret_cast<const uint8_t*>(from) + 16);
  AttentionItem item;
  item.row = static_cast<int32_t>(a.x);
  item.position = static_cast<int32_t>(a.y);
  item.table = static_cast<int32_t>(a.z);
  item.page_begin = static_cast<int32_t>(a.w);
  item.page_end = static_cast<int32_t>(b.x);
  item.head = static_cast<int32_t>(b.y);
  item.columns = static_cast<int16_t>(b.z & 0xffffu);
  item.whole = static_cast<int16_t>(b.z >> 16);
  item.kv_head = static_cast<int32_t>(b.w);
  return item;
}

// The end of the pages of the chunk that `page` is in, within the item's pages.
QSERVE_DEVICE int ChunkEnd(int page, int page_end) {
  const int end = (page / kChunkPages + 1) * kChunkPages;
  return end < page_end ? end : page_end;
}

// Steps are pages of keys of a chunk, then the same pages' values; then the next chunk, the next
// item of this block. Consume() waits for the oldest step, Refill() begins the copy of the step
// that takes its place.
template <class Shape>
class AttentionRing {
 public:
  QSERVE_DEVICE AttentionRing(const AttentionSource& source, uint8_t* shared)
      : source_(source), warp_shared_(shared + WarpId() * Shape::kSlots * Shape::kSlot) {
    item_ = BlockX();
    StartItem();
    for (int i = 0; i < Shape::kSlots; ++i) Refill();
  }

  // The slot of the oldest step, filled. All lanes of the warp.
  QSERVE_DEVICE const uint8_t* Consume() {
    CopyAsyncWait<Shape::kSlots - 1>();
    SyncWarp();
    return warp_shared_ + slot_ * Shape::kSlot;
  }

  // When all lanes have read the oldest slot's last byte.
  QSERVE_DEVICE void Release() {
    SyncWarp();
    Refill();
  }

 private:
  using Page = typename Shape::Page;

  QSERVE_DEVICE void StartItem() {
    valid_ = item_ < source_.count;
    if (!valid_) return;
    const AttentionItem item = LoadItem(source_.items + item_);
    table_ = source_.tables + item.table;
    head_offset_ = item.kv_head * Page::kHeadBytes;
    page_end_ = item.page_end;
    StartChunk(item.page_begin);
  }

  QSERVE_DEVICE void StartChunk(int page) {
    chunk_begin_ = page;
    chunk_end_ = ChunkEnd(page, page_end_);
    page_ = page;
    values_ = false;
    page_id_ = table_[page];
  }

  // The table is read one step ahead of the copy that needs it.
  QSERVE_DEVICE void Advance() {
    if (page_ + 1 < chunk_end_) {
      ++page_;
    } else if (!values_) {
      values_ = true;
      page_ = chunk_begin_;
    } else if (chunk_end_ < page_end_) {
      return StartChunk(chunk_end_);
    } else {
      item_ += GridX();
      return StartItem();
    }
    page_id_ = table_[page_];
  }

  QSERVE_DEVICE void Refill() {
    if (valid_) {
      const uint8_t* head = source_.pages + page_id_ * source_.page_bytes + head_offset_;
      uint8_t* to = warp_shared_ + slot_ * Shape::kSlot;
      if (values_) {
        CopyValues(head, to);
      } else {
        CopyKeys(head, to);
      }
      Advance();
    }
    CopyAsyncCommit();
    slot_ = slot_ + 1 == Shape::kSlots ? 0 : slot_ + 1;
  }

  QSERVE_DEVICE void CopyKeys(const uint8_t* head, uint8_t* to) {
    const int lane = 16 * LaneId();
    const uint8_t* from = head + WarpId() * Page::kKeyTile;
    QSERVE_UNROLL
    for (int i = 0; i < Page::kKeyTile; i += 512) {
      if (i + lane < Page::kKeyTile) CopyAsync16(to + i + lane, from + i + lane);
    }
    if constexpr (Page::kQuantized) {
      from = head + Page::kParameters + WarpId() * Page::kParameterTile;
      if (lane < Page::kParameterTile) CopyAsync16(to + Page::kKeyTile + lane, from + lane);
    }
  }

  QSERVE_DEVICE void CopyValues(const uint8_t* head, uint8_t* to) {
    const int lane = 16 * LaneId();
    const int first = WarpId() * Shape::kWarpTiles;
    const uint8_t* from = head + Page::kValues + first * Page::kValueTile;
    QSERVE_UNROLL
    for (int i = 0; i < Shape::kWarpTiles; ++i) {
      if (kAttentionWarps * Shape::kWarpTiles > Page::kValueTiles &&
          first + i >= Page::kValueTiles) {
        break;
      }
      QSERVE_UNROLL
      for (int j = 0; j < Page::kValueTile; j += 512) {
        const int at = i * Page::kValueTile + j + lane;
        CopyAsync16(to + at, from + at);
      }
    }
  }

  const AttentionSource source_;
  uint8_t* const warp_shared_;
  int slot_ = 0;  // the oldest

  // The next step to be copied.
  bool valid_ = false;
  bool values_ = false;
  int item_ = 0;
  int page_ = 0;
  int chunk_begin_ = 0;
  int chunk_end_ = 0;
  int page_end_ = 0;
  int head_offset_ = 0;
  int32_t page_id_ = 0;
  const int32_t* table_ = nullptr;
};

}  // namespace qserve::kernels::cuda
