// Which blocks compute which part of a step's attention: a pure function of the step's sequences
// and of the device's size. Called by CudaBackend once per step (and sliding window) on the host;
// the arrays are then copied to the device. No state, any thread.
//
// What is decided here changes who computes a chunk of a row and never the chunk or the order of
// merging, so no row's bits depend on it (design, promise 1).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device/attention_item.h"
#include "kernels/status.h"

namespace qserve::kernels::cuda {

// The device, as far as the plan needs it.
struct AttentionDevice {
  int multiprocessors = 1;
  int64_t shared_bytes = 100 << 10;  // of a multiprocessor
};

// Shape of a layer's attention.
struct AttentionModel {
  int heads = 0;
  KvShape kv;
  int64_t sliding_window = 0;
};

// Unsupported, saying why, if no kernel has this shape.
Status CheckAttentionModel(const AttentionModel& model);

// Two kernels serve a step: `narrow` takes sequences with few columns (decoding), `wide` the
// others. Number of 8-column tiles of each; equal where one serves all.
struct AttentionTiles {
  int narrow = 1;
  int wide = 4;
};
AttentionTiles ChooseAttentionTiles(const AttentionModel& model);

// Blocks that the device holds at once, from the kernel's registers and shared memory; what
// AttentionLaunch::blocks should be. The model must have passed CheckAttentionModel.
int AttentionBlocks(const AttentionModel& model, int tiles, const AttentionDevice& device);

// How large a plan may become: the sizes of the device's arrays.
struct AttentionLimits {
  int64_t rows = 0;           // of the step or its bucket
  int64_t items = 0;          // of each list
  int64_t parts = 0;          // at least rows
  int64_t table_entries = 0;  // of all block tables together
};
// Items and parts such that every step of `rows` rows can be planned, with room for the splitting
// of long sequences that keeps the device busy. table_entries is up to the caller.
AttentionLimits ChooseAttentionLimits(const AttentionModel& model, const AttentionDevice& device,
                                      int64_t rows);
// Bytes of AttentionParts::out and ::weights for `parts` parts.
int64_t AttentionPartBytes(const AttentionModel& model, int64_t parts);
int64_t AttentionWeightBytes(const AttentionModel& model, int64_t parts);

struct AttentionPlan {
  std::vector<AttentionItem> narrow;  // most work first
  std::vector<AttentionItem> wide;
  std::vector<int32_t> block_tables;
  // Of each of limits.rows rows; rows of no sequence have position -1, page 0 and no part.
  std::vector<int32_t> positions;
  std::vector<int32_t> pages;
  std::vector<int32_t> first_parts;
  std::vector<int32_t> part_counts;
  int64_t parts = 0;
};

// Fills `plan`, reusing its memory. OutOfMemory if the step does not fit the limits.
// Sequences are as in AttentionArgs, rows below limits.rows. O(rows + items log items).
Status PlanAttention(const AttentionModel& model, const AttentionDevice& device,
                     const AttentionLimits& limits, std::span<const SequenceSpan> sequences,
                     AttentionPlan* plan);

}  // namespace qserve::kernels::cuda
