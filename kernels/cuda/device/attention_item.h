// What an attention block does next: the unit that the host plans (attention_plan.h) and that the
// kernel (attention_kernel.h) reads from device memory. Plain data for both.
#pragma once

#include <cstdint>

namespace qserve::kernels::cuda {

// Some query columns of one sequence and one kv head, over a range of pages. The columns of a
// sequence are its rows in order, and within a row the query heads of the kv head's group: column j
// is row `row` + j / group, head kv_head * group + j % group. The item has columns
// [head, head + columns) of those.
//
// Either `whole`: the pages are all that its rows see, chunks are merged in order by the block and
// the result is part 0 of each row. Or the pages lie in one chunk of 256 positions, whose result is
// part (chunk - first chunk that the row sees) of each row that sees something of it.
struct alignas(16) AttentionItem {
  int32_t row = 0;         // of the step; that of column 0
  int32_t position = 0;    // of that row
  int32_t table = 0;       // where the sequence's block table begins
  int32_t page_begin = 0;  // absolute: position / 64; at least one page
  int32_t page_end = 0;
  int32_t head = 0;
  int16_t columns = 0;
  int16_t whole = 0;
  int32_t kv_head = 0;
};
static_assert(sizeof(AttentionItem) == 32);

}  // namespace qserve::kernels::cuda
