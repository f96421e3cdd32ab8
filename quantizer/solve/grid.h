// The values that a row of a 4-bit linear can take: step * code + base, codes 0..15, with a step
// and a base for each group of columns. How they are chosen for weights whose columns matter
// unequally. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/quant/linear_weight.h"
#include "kernels/status.h"
#include "quantizer/block/matrix.h"
#include "quantizer/solve/solve_options.h"

namespace qserve::quantizer::solve {

// Round half to even of |x| < 2^22, without a call: added and subtracted.
inline constexpr float kRoundingMagic = 12582912.0f;  // 1.5 * 2^23
inline float RoundFast(float x) { return (x + kRoundingMagic) - kRoundingMagic; }

// Codes of one group of one row.
struct Levels {
  float step = 1;
  float base = 0;
  float inverse = 1;   // of step
  float highest = 15;  // code: above it int8 overflows, for some scales of g128
  float CodeOf(float value) const {
    const float at = (value - base) * inverse;
    return RoundFast(at < 0.0f ? 0.0f : at > highest ? highest : at);
  }
  float ValueOf(float code) const { return step * code + base; }
  float Nearest(float value) const { return ValueOf(CodeOf(value)); }
};

// Of the group that column `column` of `row` belongs to.
Levels LevelsOf(const kernels::LinearWeight& weight, int64_t row, int64_t group);
// Columns of a group: kWeightGroup, or the whole row.
int64_t GroupColumns(const kernels::LinearWeight& weight);

// A weight of the options' scheme with scales, zeros and round-to-nearest codes chosen for the rows
// of `weights` [n][k]. With clip_search they minimise sum_k importance[k] (w - w')^2 of each row;
// importance [k] is positive. Errors: those of round to nearest.
kernels::StatusOr<kernels::LinearWeight> ChooseGrid(const MatrixF& weights,
                                                    const VectorF& importance,
                                                    const SolveOptions& options);

}  // namespace qserve::quantizer::solve
