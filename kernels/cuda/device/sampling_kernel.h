// The sampling kernel: a block draws a row's token, in the order that SampleArgs
// (kernels/backend.h) gives: raw log-probabilities, penalties, biases and bans, the grammar's mask,
// then the largest or, with a temperature, top_k, top_p, min_p and the draw. Each pass through the
// row that it does not need is left out; a greedy row is read once.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/sampling_block.h"
#include "kernels/cuda/device/sampling_draw.h"
#include "kernels/cuda/device/sampling_row.h"
#include "kernels/cuda/device/sampling_select.h"
#include "kernels/cuda/device/simt.h"

namespace qserve::kernels::cuda {

template <int kBlockThreads>
struct SampleKernel {
  struct Params {
    float* logits = nullptr;
    int64_t stride = 0;
    uint8_t* inputs = nullptr;
    uint8_t* results = nullptr;
    int32_t* sampled_ids = nullptr;
    const uint32_t* masks = nullptr;
    int64_t mask_stride = 0;
    int32_t vocab_size = 0;
  };
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kMinBlocks = 1;

  static QSERVE_DEVICE void Run(const Params& p) {
    const SamplingHeader header = *reinterpret_cast<const SamplingHeader*>(p.inputs);
    if (BlockX() >= header.rows) return;
    // Read where it is needed, so that it does not lie in registers all the time.
    const SamplingRow& row =
        reinterpret_cast<const SamplingRow*>(p.inputs + sizeof(SamplingHeader))[BlockX()];
    auto& shared = *reinterpret_cast<SelectShared*>(SharedMemory());
    float* logits = p.logits + BlockX() * p.stride;
    const Edits edits = {
        reinterpret_cast<SamplingEdit*>(p.inputs + header.edits_offset) + row.first_edit,
        static_cast<int>(row.edits),
        reinterpret_cast<const float*>(p.inputs + header.biases_offset)};
    auto* tops = reinterpret_cast<SamplingTop*>(p.results + header.tops_offset) + row.first_top;

    SamplingResult result;
    const LogitRow raw = {.logits = logits, .count = p.vocab_size};
    const bool greedy = row.temperature == 0.0f;
    const bool changed = row.edits > 0 || row.mask >= 0;
    KeyedId largest;
    float raw_max = 0, log_sum = 0;
    if (greedy || changed || row.logprobs >= 0) {
      largest = ScanRow<kThreads>(raw, shared.scratch);
      if (largest.key > kKeyOfInfinity) {
        Finish(p, row, {.outcome = SamplingOutcome::kNan});
        return;
      }
      raw_max = ValueOf(largest.key);
    }
    if (row.logprobs >= 0) {
      log_sum = Logarithm(ExpSumOfRow<kThreads>(raw, raw_max, shared.scratch));
      if (row.logprobs > 0 && largest.key > kKeyOfLowest) {
        result.tops = NoteTops(raw, raw_max, log_sum, row.logprobs, tops, shared);
      }
    }
    Apply(row, edits, logits);
    const LogitRow x = {.logits = logits,
                        .mask = row.mask >= 0 ? p.masks + row.mask * p.mask_stride : nullptr,
                        .count = p.vocab_size,
                        .temperature = row.temperature,
                        .divided = !greedy && row.temperature != 1.0f};
    if (!greedy || changed) largest = ScanRow<kThreads>(x, shared.scratch);
    if (largest.key > kKeyOfInfinity) {
      result.outcome = SamplingOutcome::kNan;
    } else if (largest.key <= kKeyOfLowest) {
      result.outcome = SamplingOutcome::kNothingLeft;
    } else {
      // An infinite logit leaves no distribution to draw from: it wins.
      const bool draws = !greedy && largest.key < kKeyOfInfinity;
      result.id = draws ? Draw(x, row, largest, shared) : largest.id;
    }
    Restore(edits, logits);
    if (row.logprobs >= 0 && result.outcome == SamplingOutcome::kDrawn) {
      result.logprob = (logits[result.id] - raw_max) - log_sum;
    }
    Finish(p, row, result);
  }

 private:
  struct Edits {
    SamplingEdit* edits = nullptr;
    int count = 0;
    const float* biases = nullptr;
  };

  static QSERVE_DEVICE void Finish(const Params& p, const SamplingRow& row,
                                   const SamplingResult& result) {
    if (ThreadId() != 0) return;
    reinterpret_cast<SamplingResult*>(p.results)[BlockX()] = result;
    if (p.sampled_ids != nullptr && result.outcome == SamplingOutcome::kDrawn) {
      p.sampled_ids[row.slot] = result.id;
    }
  }

  // The most likely ids with their log-probabilities; returns how many there are.
  static QSERVE_DEVICE int NoteTops(const LogitRow& raw, float max, float log_sum, int wanted,
                                    SamplingTop* tops, SelectShared& shared) {
    Goal goal;
    goal.wanted.count = static_cast<uint32_t>(wanted);
    const Selection last = Select<kThreads>(raw, max, Cut{}, goal, shared);
    int count = last.place + 1;
    if (!last.listed) {
      internal::ListIds<kThreads>(
          raw, shared, [&last](uint32_t key, int id) { return Passes(last.cut, key, id); });
      count = static_cast<int>(shared.list_size);
    }
    for (int i = ThreadId(); i < count; i += kThreads) {
      const uint64_t entry = shared.list[i];
      const float value = ValueOf(internal::KeyOfEntry(entry));
      tops[i] = {internal::IdOfEntry(entry), (value - max) - log_sum};
    }
    SyncThreads();
    return count;
  }

  // Penalties, biases and bans, in the logits themselves.
  static QSERVE_DEVICE void Apply(const SamplingRow& row, const Edits& edits, float* logits) {
    if (edits.count == 0) return;
    for (int i = ThreadId(); i < edits.count; i += kThreads) {
      SamplingEdit& edit = edits.edits[i];
      float x = logits[edit.id];
      edit.raw = x;
      if (edit.in_output >= 0) {
        x = x > 0.0f ? Divide(x, row.repetition_penalty) : x * row.repetition_penalty;
      }
      if (edit.in_output > 0) {
        x = x - row.presence_penalty;
        x = x - row.frequency_penalty * static_cast<float>(edit.in_output);
      }
      for (uint32_t b = 0; b < edit.biases; ++b) x = x + edits.biases[edit.first_bias + b];
      logits[edit.id] = edit.banned != 0 ? FloatOf(0xff800000u) : x;
    }
    SyncThreads();
  }

  static QSERVE_DEVICE void Restore(const Edits& edits, float* logits) {
    if (edits.count == 0) return;
    SyncThreads();
    for (int i = ThreadId(); i < edits.count; i += kThreads) {
      logits[edits.edits[i].id] = edits.edits[i].raw;
    }
    SyncThreads();
  }

  static QSERVE_DEVICE int32_t Draw(const LogitRow& x, const SamplingRow& row,
                                    const KeyedId& largest, SelectShared& shared) {
    const float max = ValueOf(largest.key);
    const bool by_count = row.top_k > 0 && row.top_k < x.count;
    Selection selection;
    for (int step = 0; step < 2; ++step) {  // top_k, then top_p of what is left
      const bool by_mass = step == 1;
      if (by_mass ? row.top_p >= 1.0f : !by_count) continue;
      Goal goal;
      goal.by_mass = by_mass;
      goal.share = row.top_p;
      goal.wanted.count = static_cast<uint32_t>(row.top_k);
      if (selection.listed) {
        const int place =
            internal::FindInList<kThreads>(selection.place + 1, max, Totals{}, goal, shared);
        const uint64_t entry = shared.list[place];
        selection.cut = {internal::KeyOfEntry(entry), internal::IdOfEntry(entry)};
      } else {
        selection = Select<kThreads>(x, max, selection.cut, goal, shared);
      }
    }
    return DrawId<kThreads>(x, row, selection.cut, largest, shared.scratch);
  }
};

}  // namespace qserve::kernels::cuda
