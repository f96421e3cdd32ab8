// What both full-precision implementations share. Executor's thread and the pool's.
#include "kernels/cpu/linear_float.h"

#include <string>

namespace qserve::kernels::cpu {

StatusOr<std::unique_ptr<PackedLinear>> PackFloat(ThreadPool& pool, const LinearWeight& weight) {
  auto packed = std::make_unique<FloatLinear>();
  packed->format = weight.format;
  packed->n = weight.n;
  packed->k = weight.k;
  packed->bytes = weight.n * weight.k * static_cast<int64_t>(sizeof(float));
  packed->values = AlignedMemory::Allocate(packed->bytes);
  if (packed->values.data() == nullptr) {
    return Status(StatusCode::kOutOfMemory,
                  "cpu: no memory of " + std::to_string(packed->bytes) + " bytes for weights");
  }
  packed->bias_values = weight.bias;
  pool.ParallelFor(weight.n, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      DequantizeRow(weight, row, packed->values.as<float>() + row * weight.k);
  });
  return std::unique_ptr<PackedLinear>(std::move(packed));
}

Status LinearFloat(OpContext& context, const LinearArgs& args) {
  const auto& weight = static_cast<const FloatLinear&>(*args.weight);
  if (args.out.rows == 0) return {};
  context.pool.ParallelFor(weight.n, 64, [&](int64_t begin, int64_t end, int) {
    MultiplyFloat(weight, args, begin, end);
    if (weight.bias_values.empty()) return;
    for (int64_t m = 0; m < args.out.rows; ++m) {
      for (int64_t n = begin; n < end; ++n)
        args.out.row(m)[n] += weight.bias_values[static_cast<size_t>(n)];
    }
  });
  return {};
}

}  // namespace qserve::kernels::cpu
