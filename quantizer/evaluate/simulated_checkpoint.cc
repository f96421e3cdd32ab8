// See simulated_checkpoint.h.
#include "quantizer/evaluate/simulated_checkpoint.h"

#include <cstring>
#include <utility>

#include "common/status_macros.h"

namespace qserve::quantizer {

namespace ckpt = worker::checkpoint;

SimulatedCheckpoint::SimulatedCheckpoint(const ckpt::Checkpoint& source, LinearSource linears)
    : source_(source), linears_(std::move(linears)), config_(source.config()) {
  config_.scheme = ckpt::Scheme::kFloat;
  config_.kv_bits.reset();
  config_.layer_kv_bits.clear();
  config_.lm_head_bits.reset();
}

absl::StatusOr<kernels::LinearWeight> SimulatedCheckpoint::ReadLinear(
    const std::string& name, Range rows, Range columns, ckpt::LoadQuantization) const {
  ASSIGN_OR_RETURN(const kernels::LinearWeight weight, linears_(name, rows, columns));
  return ReadBack(weight);
}

kernels::LinearWeight ReadBack(const kernels::LinearWeight& weight) {
  kernels::LinearWeight result;
  result.format = kernels::WeightFormat::kFloat;
  result.float_type = kernels::FloatType::kF32;
  result.n = weight.n;
  result.k = weight.k;
  result.bias = weight.bias;
  const size_t row_bytes = static_cast<size_t>(weight.k) * sizeof(float);
  result.floats.resize(static_cast<size_t>(weight.n) * row_bytes);
  std::vector<float> row(static_cast<size_t>(weight.k));
  for (int64_t n = 0; n < weight.n; ++n) {
    kernels::DequantizeRow(weight, n, row.data());
    std::memcpy(result.floats.data() + static_cast<size_t>(n) * row_bytes, row.data(), row_bytes);
  }
  return result;
}

}  // namespace qserve::quantizer
