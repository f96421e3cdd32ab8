// Sampling on the CPU: the algorithm is written once (sample.cc) over four passes through the
// vocabulary, which each instruction set provides. Used by float_ops of every instruction set; one
// row is one thread's work.
#pragma once

#include <cstdint>

#include "kernels/cpu/op_table.h"

namespace qserve::kernels::cpu {

struct RowScan {
  float max = 0;
  int32_t argmax = -1;  // the lowest id among equals; -1 if every value is -infinity or NaN
  bool has_nan = false;
};

// Draw of the largest x[i] - log(-log(u_i)) among the ids that pass the filters.
struct GumbelDraw {
  const float* row = nullptr;  // logits / temperature
  int64_t count = 0;
  float max = 0;    // largest of row
  float min_p = 0;  // ids with exp(row[i] - max) below it are left out
  float cut_value =
      0;  // ids below this value are left out, and those equal to it with an id above cut_id
  int32_t cut_id = 0;
  uint32_t seed_low = 0;  // Philox key
  uint32_t seed_high = 0;
  uint32_t position = 0;  // Philox counter (id / 4, position, candidate, 0), word id % 4
  uint32_t candidate = 0;
};

// Passes over a row. All bits agree between instruction sets.
struct SamplePasses {
  RowScan (*scan)(const float* row, int64_t count);
  float (*exp_sum)(const float* row, int64_t count,
                   float max);  // sum of exp(row[i] - max) over lanes i % 16
  void (*exp)(const float* row, int64_t count, float max, float* out);         // exp(row[i] - max)
  void (*divide)(const float* row, int64_t count, float divisor, float* out);  // in place allowed
  int32_t (*draw)(const GumbelDraw& draw);  // lowest id among equals
};

// A Gumbel variate is at most -log(-log(1 - 2^-24)) = 16.64: who is farther behind cannot win.
inline constexpr float kGumbelBound = 17.0f;

// The op, on the given passes. kDevice if a logit is NaN or no id is left to draw.
Status SampleWith(const SamplePasses& passes, OpContext& context, const SampleArgs& args);

}  // namespace qserve::kernels::cpu
