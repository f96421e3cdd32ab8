// A checkpoint whose block linears are floating point again: quantized weights read back, or
// full-precision ones put through a quantizer and read back. So the error of weights can be seen
// without that of activations. Made by trial.cc, read by worker/model while it loads.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "worker/checkpoint/checkpoint.h"

namespace qserve::quantizer {

class SimulatedCheckpoint final : public worker::checkpoint::Checkpoint {
 public:
  using Range = worker::checkpoint::Range;
  // Rows and columns of the linear `name` in any format, by the source.
  using LinearSource = std::function<absl::StatusOr<kernels::LinearWeight>(
      const std::string& name, Range rows, Range columns)>;

  // `source` must outlive this; all but linears comes from it. `linears` is called from several
  // threads.
  SimulatedCheckpoint(const worker::checkpoint::Checkpoint& source, LinearSource linears);

  // The source's, as that of a floating-point model.
  const worker::checkpoint::ModelConfig& config() const override { return config_; }
  const worker::checkpoint::GenerationDefaults& generation_defaults() const override {
    return source_.generation_defaults();
  }
  // `quantization` is not used: kFloat in fp32.
  absl::StatusOr<kernels::LinearWeight> ReadLinear(
      const std::string& name, Range rows, Range columns,
      worker::checkpoint::LoadQuantization quantization) const override;
  absl::StatusOr<std::vector<float>> ReadVector(const std::string& name,
                                                int64_t size) const override {
    return source_.ReadVector(name, size);
  }
  absl::StatusOr<worker::checkpoint::FloatMatrix> ReadRows(const std::string& name, Range rows,
                                                           int64_t cols) const override {
    return source_.ReadRows(name, rows, cols);
  }
  absl::StatusOr<worker::checkpoint::StoredRows> OpenRows(const std::string& name, Range rows,
                                                          int64_t cols) const override {
    return source_.OpenRows(name, rows, cols);
  }
  bool Has(const std::string& tensor_name) const override { return source_.Has(tensor_name); }
  uint64_t digest() const override { return source_.digest(); }
  int64_t bytes_read() const override { return source_.bytes_read(); }

 private:
  const worker::checkpoint::Checkpoint& source_;
  const LinearSource linears_;
  worker::checkpoint::ModelConfig config_;
};

// `weight` with the values that kernels see, as fp32; the bias stays.
kernels::LinearWeight ReadBack(const kernels::LinearWeight& weight);

}  // namespace qserve::quantizer
