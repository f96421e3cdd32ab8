// What a signal of the quantized model differs by from the same signal in full precision, summed up
// over steps; exactly, or up to a change that a quantizer makes without changing the model's
// function. Called by layer_report.cc; pure.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include <Eigen/Core>

#include "absl/status/statusor.h"
#include "kernels/types.h"
#include "worker/checkpoint/checkpoint.h"

namespace qserve::quantizer {

class SignalError {
 public:
  virtual ~SignalError() = default;
  // Rows of tokens, of both models.
  virtual void Add(kernels::Matrix<const float> reference, kernels::Matrix<const float> values) = 0;
  // 10 log10(sum of squares / sum of squared errors) of what was added; infinite: no error.
  virtual double snr_db() const = 0;
};

// As they are.
std::unique_ptr<SignalError> DirectError();
// Up to a factor for each column (smoothing), the one that fits best.
std::unique_ptr<SignalError> UpToGains();
// Up to a linear map of each head (rotation of the value heads), the one that fits best: needs many
// more tokens than `head_dim`.
std::unique_ptr<SignalError> UpToHeadMaps(int64_t head_dim);
// The reference's rows turned by `rotation`, which must outlive the result.
std::unique_ptr<SignalError> Turned(const Eigen::MatrixXd& rotation);

// The matrix R for which the embeddings of `b` are those of `a` times R, if there is one: how the
// residual stream was turned. Both have the same shape.
absl::StatusOr<std::optional<Eigen::MatrixXd>> FindRotation(
    const worker::checkpoint::Checkpoint& a, const worker::checkpoint::Checkpoint& b);

}  // namespace qserve::quantizer
