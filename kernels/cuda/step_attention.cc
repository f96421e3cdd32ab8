#include "kernels/cuda/step_attention.h"

#include <algorithm>
#include <utility>

namespace qserve::kernels::cuda {
namespace {

bool Same(std::span<const SequenceSpan> a, std::span<const SequenceSpan> b) {
  return a.data() == b.data() && a.size() == b.size();
}

bool Same(const AttentionModel& a, const AttentionModel& b) {
  return a.heads == b.heads && a.kv.format == b.kv.format && a.kv.kv_heads == b.kv.kv_heads &&
         a.kv.head_dim == b.kv.head_dim && a.sliding_window == b.sliding_window;
}

}  // namespace

void StepAttention::Refresh() {
  if (step_ == runner_->step_number()) return;
  step_ = runner_->step_number();
  rows_ = 0;
  places_.clear();
  plans_.clear();
}

const RowPlaces* StepAttention::Places(std::span<const SequenceSpan> sequences, int64_t rows) {
  Refresh();
  for (const KnownPlaces& known : places_) {
    if (Same(known.sequences, sequences)) return &known.places;
  }
  positions_.clear();
  pages_.clear();
  for (const SequenceSpan& sequence : sequences) {
    for (int64_t i = 0; i < sequence.row_count; ++i) {
      const int64_t position = sequence.first_position + i;
      positions_.push_back(static_cast<int32_t>(position));
      pages_.push_back(sequence.block_table[static_cast<size_t>(position / kKvPageTokens)]);
    }
  }
  RowPlaces places;
  places.positions = runner_->Stage<int32_t>(positions_, rows, -1);
  places.pages = runner_->Stage<int32_t>(pages_, rows, 0);
  if (places.positions == nullptr || places.pages == nullptr) return nullptr;
  rows_ = runner_->last_room() / int64_t{sizeof(int32_t)};
  places_.push_back({sequences, places});
  return &places_.back().places;
}

const StagedAttention* StepAttention::Plan(const AttentionModel& model,
                                           std::span<const SequenceSpan> sequences, int64_t rows) {
  Refresh();
  for (const KnownPlan& known : plans_) {
    if (Same(known.sequences, sequences) && Same(known.model, model)) return &known.staged;
  }
  if (Status status = CheckAttentionModel(model); !status.ok()) {
    runner_->Fail(std::move(status));
    return nullptr;
  }
  // A recording is for more rows than the step that replays it: the plan fills all of them.
  if (runner_->PlacesAreFixed()) {
    if (rows_ < rows) {
      runner_->Fail(InvalidArgument("cuda: attention in a recorded step without stored keys"));
      return nullptr;
    }
    rows = rows_;
  }
  StagedAttention staged;
  staged.tiles = ChooseAttentionTiles(model);
  staged.limits = ChooseAttentionLimits(model, device_, rows);
  staged.limits.table_entries = runner_->PlacesAreFixed() ? INT32_MAX : 0;
  if (!runner_->PlacesAreFixed()) {
    for (const SequenceSpan& sequence : sequences) {
      staged.limits.table_entries += std::ssize(sequence.block_table);
    }
  }
  if (Status status = PlanAttention(model, device_, staged.limits, sequences, &plan_);
      !status.ok()) {
    runner_->Fail(std::move(status));
    return nullptr;
  }
  if (!Stage(&plan_, &staged)) return nullptr;
  plans_.push_back({model, sequences, staged});
  return &plans_.back().staged;
}

// What differs in length from step to step lies together, items before tables, so that exactly what
// is there is copied, whatever the room: places in tables are counted from the first item.
bool StepAttention::Stage(AttentionPlan* plan, StagedAttention* staged) {
  const AttentionLimits& limits = staged->limits;
  const auto bytes_of = [](const auto& list) {
    return static_cast<int64_t>(list.size() * sizeof(list.front()));
  };
  const int64_t item_bytes = bytes_of(plan->narrow);
  if (runner_->PlacesAreFixed() && plan->narrow.empty()) {
    runner_->Fail(InvalidArgument("cuda: attention in a recorded step that is none of decoding"));
    return false;
  }
  for (std::vector<AttentionItem>* items : {&plan->narrow, &plan->wide}) {
    for (AttentionItem& item : *items) {
      item.table += static_cast<int32_t>(item_bytes / int64_t{sizeof(int32_t)});
    }
  }
  const int32_t counts[2] = {static_cast<int32_t>(plan->narrow.size()),
                             static_cast<int32_t>(plan->wide.size())};
  staged->counts = runner_->Stage<int32_t>(counts, 2, 0);
  staged->first_parts = runner_->Stage<int32_t>(plan->first_parts, limits.rows, 0);
  staged->part_counts = runner_->Stage<int32_t>(plan->part_counts, limits.rows, 0);
  const int64_t room = limits.items * int64_t{sizeof(AttentionItem)};
  const int64_t table_room =
      std::max(limits.table_entries, std::ssize(plan->block_tables)) * int64_t{sizeof(int32_t)};
  const StagedBytes lists =
      runner_->Place(room + table_room, item_bytes + bytes_of(plan->block_tables), /*tail=*/true);
  if (lists.host == nullptr) return false;
  std::ranges::copy(std::as_bytes(std::span(plan->narrow)), lists.host);
  std::ranges::copy(std::as_bytes(std::span(plan->block_tables)), lists.host + item_bytes);
  if (counts[0] > 0) staged->narrow = reinterpret_cast<const AttentionItem*>(lists.device);
  staged->block_tables = reinterpret_cast<const int32_t*>(lists.device);
  const AttentionItem* const wide =
      runner_->StageTail<AttentionItem>(plan->wide, plan->wide.empty() ? 0 : limits.items);
  if (counts[1] > 0) staged->wide = wide;
  return !runner_->failed();
}

}  // namespace qserve::kernels::cuda
