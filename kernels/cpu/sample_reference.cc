// The passes of sampling, plain form.
#include "common/philox.h"
#include "kernels/cpu/float_ops.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/sample.h"

namespace qserve::kernels::cpu::reference {
namespace {

RowScan Scan(const float* row, int64_t count) {
  RowScan scan{.max = -INFINITY};
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(row[i])) scan.has_nan = true;
    if (row[i] > scan.max) {
      scan.max = row[i];
      scan.argmax = static_cast<int32_t>(i);
    }
  }
  return scan;
}

float ExpSum(const float* row, int64_t count, float max) {
  LaneSum sum;
  for (int64_t i = 0; i < count; ++i) sum.Add(i, Exp(row[i] - max));
  return sum.Total();
}

void ExpRow(const float* row, int64_t count, float max, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = Exp(row[i] - max);
}

void Divide(const float* row, int64_t count, float divisor, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = row[i] / divisor;
}

int32_t Draw(const GumbelDraw& draw) {
  float best = -INFINITY;
  int32_t best_id = -1;
  for (int32_t id = 0; id < draw.count; ++id) {
    const float x = draw.row[id];
    if (x < draw.cut_value || (x == draw.cut_value && id > draw.cut_id)) continue;
    if (Exp(x - draw.max) < draw.min_p) continue;
    const PhiloxBlock block =
        Philox4x32({static_cast<uint32_t>(id / 4), draw.position, draw.candidate, 0},
                   {draw.seed_low, draw.seed_high});
    const float key = x - Log(-Log(UniformOpen(block[static_cast<size_t>(id % 4)])));
    if (key > best) {
      best = key;
      best_id = id;
    }
  }
  return best_id;
}

constexpr SamplePasses kPasses = {Scan, ExpSum, ExpRow, Divide, Draw};

}  // namespace

Status Sample(OpContext& context, const SampleArgs& args) {
  return SampleWith(kPasses, context, args);
}

}  // namespace qserve::kernels::cpu::reference
