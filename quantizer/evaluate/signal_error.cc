// See signal_error.h.
#include "quantizer/evaluate/signal_error.h"

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "worker/checkpoint/model_layout.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
using kernels::Matrix;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using View = Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>;

View ViewOf(Matrix<const float> m) {
  return {m.data, m.rows, m.cols, Eigen::OuterStride<>(m.stride)};
}

double Decibels(double signal, double error) {
  if (error <= 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(signal / error);
}

class Direct : public SignalError {
 public:
  void Add(Matrix<const float> reference, Matrix<const float> values) override {
    const Eigen::MatrixXd expected = ViewOf(reference).cast<double>();
    signal_ += expected.squaredNorm();
    error_ += (ViewOf(values).cast<double>() - expected).squaredNorm();
  }
  double snr_db() const override { return Decibels(signal_, error_); }

 protected:
  double signal_ = 0, error_ = 0;
};

class AfterRotation final : public Direct {
 public:
  explicit AfterRotation(const Eigen::MatrixXd& rotation) : rotation_(rotation) {}
  void Add(Matrix<const float> reference, Matrix<const float> values) override {
    const Eigen::MatrixXd expected = ViewOf(reference).cast<double>() * rotation_;
    signal_ += expected.squaredNorm();
    error_ += (ViewOf(values).cast<double>() - expected).squaredNorm();
  }

 private:
  const Eigen::MatrixXd& rotation_;
};

// Least squares need products only: per column, or per head.
class AfterGains final : public SignalError {
 public:
  void Add(Matrix<const float> reference, Matrix<const float> values) override {
    const Eigen::ArrayXXd a = ViewOf(reference).cast<double>().array();
    const Eigen::ArrayXXd b = ViewOf(values).cast<double>().array();
    if (reference_.size() == 0) {
      reference_ = both_ = values_ = Eigen::ArrayXd::Zero(a.cols());
    }
    reference_ += a.square().colwise().sum().transpose();
    both_ += (a * b).colwise().sum().transpose();
    values_ += b.square().colwise().sum().transpose();
  }
  // Of the model's own values, so that a column's gain does not decide its weight.
  double snr_db() const override {
    double signal = 0, error = 0;
    for (Eigen::Index i = 0; i < reference_.size(); ++i) {
      const double fitted = reference_[i] > 0 ? both_[i] * both_[i] / reference_[i] : 0;
      signal += fitted;
      error += std::max(values_[i] - fitted, 0.0);
    }
    return Decibels(signal, error);
  }

 private:
  Eigen::ArrayXd reference_, both_, values_;  // sums of squares and products, per column
};

class AfterHeadMaps final : public SignalError {
 public:
  explicit AfterHeadMaps(int64_t head_dim) : head_dim_(head_dim) {}
  void Add(Matrix<const float> reference, Matrix<const float> values) override {
    const auto heads = static_cast<size_t>(reference.cols / head_dim_);
    if (sums_.empty())
      sums_.assign(heads, {Eigen::MatrixXd::Zero(head_dim_, head_dim_),
                           Eigen::MatrixXd::Zero(head_dim_, head_dim_), 0});
    for (size_t head = 0; head < heads; ++head) {
      const Eigen::Index first = static_cast<Eigen::Index>(head) * head_dim_;
      const Eigen::MatrixXd a = ViewOf(reference).middleCols(first, head_dim_).cast<double>();
      const Eigen::MatrixXd b = ViewOf(values).middleCols(first, head_dim_).cast<double>();
      sums_[head].reference += a.transpose() * a;
      sums_[head].both += a.transpose() * b;
      sums_[head].values += b.squaredNorm();
    }
  }
  double snr_db() const override {
    double signal = 0, error = 0;
    for (const Sums& sums : sums_) {
      const Eigen::MatrixXd map = sums.reference.ldlt().solve(sums.both);
      const double fitted = (sums.both.array() * map.array()).sum();
      signal += fitted;
      error += std::max(sums.values - fitted, 0.0);
    }
    return Decibels(signal, error);
  }

 private:
  struct Sums {
    Eigen::MatrixXd reference, both;
    double values = 0;
  };
  const int64_t head_dim_;
  std::vector<Sums> sums_;
};

// Rows of the embedding, evenly spread, as many as determine a rotation well.
absl::StatusOr<Eigen::MatrixXd> EmbeddingRows(const ckpt::Checkpoint& checkpoint) {
  constexpr int64_t kRowsPerColumn = 4, kBlock = 64;
  const ckpt::ModelConfig& config = checkpoint.config();
  const int64_t hidden = config.hidden_size, vocabulary = config.vocab_size;
  const int64_t blocks = std::max<int64_t>(kRowsPerColumn * hidden / kBlock, 1);
  const int64_t step = std::max(vocabulary / blocks, kBlock);
  std::vector<float> values;
  for (int64_t begin = 0; begin + kBlock <= vocabulary; begin += step) {
    ASSIGN_OR_RETURN(const ckpt::FloatMatrix matrix,
                     checkpoint.ReadRows(ckpt::kEmbeddingTensor, {begin, begin + kBlock}, hidden));
    const size_t at = values.size();
    values.resize(at + static_cast<size_t>(kBlock * hidden));
    kernels::WidenFloats(matrix.type, matrix.data.data(), kBlock * hidden, values.data() + at);
  }
  const int64_t rows = std::ssize(values) / hidden;
  return ViewOf({values.data(), rows, hidden, hidden}).cast<double>();
}

}  // namespace

std::unique_ptr<SignalError> DirectError() { return std::make_unique<Direct>(); }
std::unique_ptr<SignalError> UpToGains() { return std::make_unique<AfterGains>(); }
std::unique_ptr<SignalError> UpToHeadMaps(int64_t head_dim) {
  return std::make_unique<AfterHeadMaps>(head_dim);
}
std::unique_ptr<SignalError> Turned(const Eigen::MatrixXd& rotation) {
  return std::make_unique<AfterRotation>(rotation);
}

absl::StatusOr<std::optional<Eigen::MatrixXd>> FindRotation(const ckpt::Checkpoint& a,
                                                            const ckpt::Checkpoint& b) {
  ASSIGN_OR_RETURN(const Eigen::MatrixXd from, EmbeddingRows(a));
  ASSIGN_OR_RETURN(const Eigen::MatrixXd to, EmbeddingRows(b));
  if (from.rows() <= from.cols()) return std::nullopt;  // too few to tell
  const Eigen::MatrixXd square = from.transpose() * from;
  Eigen::MatrixXd rotation = square.ldlt().solve(from.transpose() * to);
  constexpr double kRoundingDb = 30;  // fp16 and bf16 embeddings leave more
  const bool found = rotation.allFinite() &&
                     Decibels(to.squaredNorm(), (from * rotation - to).squaredNorm()) > kRoundingDb;
  if (!found) return std::nullopt;
  return rotation;
}

}  // namespace qserve::quantizer
