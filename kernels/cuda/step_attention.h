// A step's attention as the device needs it, planned and staged once: which row is where, and who
// computes what. Layers of one shape share it. Used by CudaBackend, on its thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/step_runner.h"

namespace qserve::kernels::cuda {

// Device arrays, [rows] each.
struct RowPlaces {
  const int32_t* positions = nullptr;  // -1: a row of padding
  const int32_t* pages = nullptr;
};

struct StagedAttention {
  AttentionLimits limits;  // of this step, or of the recording it replays
  AttentionTiles tiles;
  const AttentionItem* narrow = nullptr;  // null: there are none, and no launch is needed
  const AttentionItem* wide = nullptr;
  const int32_t* counts = nullptr;  // of narrow, of wide
  const int32_t* block_tables = nullptr;
  const int32_t* first_parts = nullptr;
  const int32_t* part_counts = nullptr;
};

class StepAttention {
 public:
  // `runner` must outlive it.
  StepAttention(StepRunner* runner, const AttentionDevice& device)
      : runner_(runner), device_(device) {}

  const AttentionDevice& device() const { return device_; }

  // Of `rows` rows that the sequences cover. Null, and the failure latched, where a step does not
  // fit; valid within the step.
  const RowPlaces* Places(std::span<const SequenceSpan> sequences, int64_t rows);
  const StagedAttention* Plan(const AttentionModel& model, std::span<const SequenceSpan> sequences,
                              int64_t rows);

 private:
  struct KnownPlaces {
    std::span<const SequenceSpan> sequences;
    RowPlaces places;
  };
  struct KnownPlan {
    AttentionModel model;
    std::span<const SequenceSpan> sequences;
    StagedAttention staged;
  };
  // Forgets what was staged for another step.
  void Refresh();
  bool Stage(AttentionPlan* plan, StagedAttention* staged);

  StepRunner* const runner_;
  const AttentionDevice device_;
  uint64_t step_ = 0;
  int64_t rows_ = 0;  // that the places have room for
  std::vector<KnownPlaces> places_;
  std::vector<KnownPlan> plans_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> pages_;
  AttentionPlan plan_;
};

}  // namespace qserve::kernels::cuda
