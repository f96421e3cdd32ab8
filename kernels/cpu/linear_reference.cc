// The linear operation as plain loops over canonical weights: what every other implementation must
// equal to the bit (but for kFloat, which is a library's elsewhere). Executor's thread and the
// pool's.
#include <cmath>
#include <vector>

#include "kernels/cpu/linear.h"

namespace qserve::kernels::cpu::reference {
namespace {

class ReferenceLinear final : public PackedLinear {
 public:
  LinearWeight weight;
};

// Lane l of 16 adds the products of columns l, l + 16, ... by fused multiply-add; the columns up to
// the next multiple of 16 are zeros. Lanes are then added in halves: l and l + 8, l + 4, l + 2, l
// + 1.
float DotOf16Lanes(const float* w, const float* x, int64_t k) {
  float lanes[16] = {};
  for (int64_t base = 0; base < k; base += 16) {
    for (int64_t l = 0; l < 16; ++l) {
      const bool inside = base + l < k;
      lanes[l] = std::fma(inside ? w[base + l] : 0.0f, inside ? x[base + l] : 0.0f, lanes[l]);
    }
  }
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] = lanes[l] + lanes[l + width];
  }
  return lanes[0];
}

// sum_k x[k] * d8[n][k]; kW4PerChannel: of the codes, the zero comes in later.
int32_t IntegerDot(const LinearWeight& w, int64_t n, const int8_t* x) {
  const uint8_t* codes = w.codes.data() + n * w.k;
  int32_t sum = 0;
  for (int64_t k = 0; k < w.k; ++k) {
    int32_t value = codes[k];
    if (w.format == WeightFormat::kW8) value = static_cast<int8_t>(codes[k]);
    if (w.format == WeightFormat::kW4Group128) {
      const auto group = static_cast<size_t>(n * w.groups() + (w.lead + k) / kWeightGroup);
      value = value * w.group_scale[group] + w.group_offset[group];
    }
    sum += value * x[k];
  }
  return sum;
}

float IntegerOutput(const LinearWeight& w, int64_t n, const Activation& x, int64_t m) {
  const auto row = static_cast<size_t>(n);
  const int32_t acc = IntegerDot(w, n, x.q + m * x.q_stride + x.lead);
  const float product = w.scale[row] * static_cast<float>(acc);
  if (w.format != WeightFormat::kW4PerChannel) return x.scale[m] * product;
  return x.scale[m] * (product - w.scaled_zero[row] * static_cast<float>(x.row_sum[m]));
}

void Rows(const LinearWeight& w, const LinearArgs& args, int64_t begin, int64_t end) {
  std::vector<float> values(static_cast<size_t>(w.k));
  for (int64_t n = begin; n < end; ++n) {
    if (!TakesInt8(w.format)) DequantizeRow(w, n, values.data());
    for (int64_t m = 0; m < args.out.rows; ++m) {
      float y = TakesInt8(w.format)
                    ? IntegerOutput(w, n, args.x, m)
                    : DotOf16Lanes(values.data(), args.x.f32 + m * args.x.f32_stride, w.k);
      if (!w.bias.empty()) y += w.bias[static_cast<size_t>(n)];
      args.out.row(m)[n] = y;
    }
  }
}

}  // namespace

StatusOr<std::unique_ptr<PackedLinear>> PackLinear(ThreadPool& /*pool*/,
                                                   const LinearWeight& weight) {
  auto packed = std::make_unique<ReferenceLinear>();
  packed->format = weight.format;
  packed->n = weight.n;
  packed->k = weight.k;
  packed->lead = weight.lead;
  packed->bytes = static_cast<int64_t>(weight.floats.size() + weight.codes.size());
  packed->weight = weight;
  return std::unique_ptr<PackedLinear>(std::move(packed));
}

Status Linear(OpContext& context, const LinearArgs& args) {
  const LinearWeight& weight = static_cast<const ReferenceLinear&>(*args.weight).weight;
  context.pool.ParallelFor(
      weight.n, 16, [&](int64_t begin, int64_t end, int) { Rows(weight, args, begin, end); });
  return {};
}

}  // namespace qserve::kernels::cpu::reference
