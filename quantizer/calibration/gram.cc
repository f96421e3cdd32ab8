// See gram.h.
#include "quantizer/calibration/gram.h"

#include <cstring>
#include <memory>
#include <vector>

#include "common/status_macros.h"
#include "kernels/ops.h"
#include "kernels/quant/activation_quant.h"
#include "worker/model/device_status.h"

namespace qserve::quantizer::calibration {

using worker::model::ToAbsl;

absl::Status AddGram(kernels::Backend& backend, const MatrixF& a, const MatrixF& b, MatrixD& sum) {
  const int64_t tokens = a.rows(), m = a.cols(), n = b.cols();
  // The linear whose weights are b's columns, applied to a's columns.
  kernels::LinearWeight weight;
  weight.n = n;
  weight.k = tokens;
  weight.floats.resize(static_cast<size_t>(n * tokens) * sizeof(float));
  const MatrixF rows = a.transpose(), columns = b.transpose();
  std::memcpy(weight.floats.data(), columns.data(), weight.floats.size());
  ASSIGN_OR_RETURN(const std::unique_ptr<kernels::PackedLinear> packed,
                   ToAbsl(backend.Pack(weight)));
  const auto bytes = [](int64_t count) { return count * int64_t{sizeof(float)}; };
  ASSIGN_OR_RETURN(const kernels::Buffer x, ToAbsl(backend.Allocate(bytes(m * tokens), "gram")));
  ASSIGN_OR_RETURN(const kernels::Buffer out, ToAbsl(backend.Allocate(bytes(m * n), "gram")));
  backend.CopyToDevice(x.data(), rows.data(), bytes(m * tokens));
  RETURN_IF_ERROR(ToAbsl(backend.Run(0, [&] {
    kernels::ops::Linear(
        backend, {.weight = packed.get(),
                  .x = {.rows = m, .cols = tokens, .f32 = x.as<float>(), .f32_stride = tokens},
                  .out = kernels::FloatMatrix(out.as<float>(), m, n, n)});
  })));
  MatrixF product(m, n);
  backend.CopyToHost(product.data(), out.data(), bytes(m * n));
  if (sum.size() == 0) sum = MatrixD::Zero(m, n);
  sum += product.cast<double>();
  return absl::OkStatus();
}

void SimulateInt8(MatrixF& x) {
  std::vector<int8_t> codes(static_cast<size_t>(x.cols()));
  for (int64_t row = 0; row < x.rows(); ++row) {
    float* const values = x.row(row).data();
    const kernels::QuantizedRow quantized = kernels::QuantizeRow(values, x.cols(), codes.data());
    for (int64_t c = 0; c < x.cols(); ++c)
      values[c] = static_cast<float>(codes[static_cast<size_t>(c)]) * quantized.scale;
  }
}

}  // namespace qserve::quantizer::calibration
