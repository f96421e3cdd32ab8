// See attention_clip.h.
#include "quantizer/attention_clip.h"

#include <algorithm>

#include "common/status_macros.h"

namespace qserve::quantizer {
namespace {

using calibration::Stage;
using kernels::LinearWeight;

template <class T>
void CopyRows(const std::vector<T>& from, int64_t rows, int64_t begin, int64_t end,
              std::vector<T>& to) {
  const int64_t width = std::ssize(from) / rows;  // 0 for what the format lacks
  std::copy(from.begin() + begin * width, from.begin() + end * width, to.begin() + begin * width);
}

void TakeRows(const LinearWeight& from, int64_t begin, int64_t end, LinearWeight& to) {
  CopyRows(from.codes, from.n, begin, end, to.codes);
  CopyRows(from.scale, from.n, begin, end, to.scale);
  CopyRows(from.scaled_zero, from.n, begin, end, to.scaled_zero);
  CopyRows(from.group_scale, from.n, begin, end, to.group_scale);
  CopyRows(from.group_offset, from.n, begin, end, to.group_offset);
}

class Clipper {
 public:
  Clipper(const ClipAttentionOptions& options, const AttentionClipInput& input,
          std::array<LinearWeight, kLinearCount>& linears)
      : options_(options), input_(input), linears_(linears) {}

  absl::StatusOr<AttentionClipErrors> Run(const SolveClipped& solve);

 private:
  absl::Status TakeExact();
  absl::StatusOr<VectorD> Errors(const LinearWeight& q, const LinearWeight& k);

  const ClipAttentionOptions& options_;
  const AttentionClipInput& input_;
  std::array<LinearWeight, kLinearCount>& linears_;
  std::vector<MatrixF> exact_;  // o_proj's input of each window
  std::vector<MatrixD> weigh_;  // W_o^T W_o of each query head
};

absl::Status Clipper::TakeExact() {
  const size_t windows = std::min(input_.exact_hidden.size(),
                                  static_cast<size_t>(std::max<int64_t>(1, options_.windows)));
  for (size_t w = 0; w < windows; ++w) {
    ASSIGN_OR_RETURN(MatrixF x,
                     input_.runner.Input(input_.exact, Stage::kO, input_.exact_hidden[w]));
    exact_.push_back(std::move(x));
  }
  const int64_t dim = input_.block.head_dim;
  for (int q = 0; q < input_.block.heads; ++q) {
    const MatrixD columns = input_.block[kO].weight.middleCols(q * dim, dim).cast<double>();
    weigh_.push_back(columns.transpose() * columns);
  }
  return absl::OkStatus();
}

absl::StatusOr<VectorD> Clipper::Errors(const LinearWeight& q, const LinearWeight& k) {
  RETURN_IF_ERROR(input_.runner.Replace(Stage::kQkv, {&q, &k, &linears_[kV]}, input_.rounded));
  const BlockWeights& block = input_.block;
  VectorD errors = VectorD::Zero(block.kv_heads);
  for (size_t w = 0; w < exact_.size(); ++w) {
    ASSIGN_OR_RETURN(MatrixF x,
                     input_.runner.Input(input_.rounded, Stage::kO, input_.rounded_hidden[w]));
    x -= exact_[w];
    for (int head = 0; head < block.heads; ++head) {
      const MatrixF here = x.middleCols(head * block.head_dim, block.head_dim);
      const MatrixD moments = (here.transpose() * here).cast<double>();
      errors[head / block.group()] += moments.cwiseProduct(weigh_[static_cast<size_t>(head)]).sum();
    }
  }
  return errors;
}

absl::StatusOr<AttentionClipErrors> Clipper::Run(const SolveClipped& solve) {
  RETURN_IF_ERROR(TakeExact());
  AttentionClipErrors errors;
  ASSIGN_OR_RETURN(errors.before, Errors(linears_[kQ], linears_[kK]));
  errors.after = errors.before;
  const int steps = std::max(1, options_.steps);
  for (const LinearIndex i : {kQ, kK}) {
    LinearWeight best = linears_[i];
    const int64_t rows = best.n / input_.block.kv_heads;
    for (int step = 0; step <= steps; ++step) {
      ASSIGN_OR_RETURN(LinearWeight clipped,
                       solve(i, 1 - (1 - options_.smallest_ratio) * step / steps));
      clipped.bias = best.bias;
      ASSIGN_OR_RETURN(const VectorD here,
                       i == kQ ? Errors(clipped, linears_[kK]) : Errors(linears_[kQ], clipped));
      for (int head = 0; head < input_.block.kv_heads; ++head) {
        if (!(here[head] < errors.after[head])) continue;
        errors.after[head] = here[head];
        TakeRows(clipped, head * rows, (head + 1) * rows, best);
      }
    }
    linears_[i] = std::move(best);
  }
  return errors;
}

}  // namespace

absl::StatusOr<AttentionClipErrors> ClipByAttention(
    const ClipAttentionOptions& options, const AttentionClipInput& input, const SolveClipped& solve,
    std::array<LinearWeight, kLinearCount>& linears) {
  return Clipper(options, input, linears).Run(solve);
}

}  // namespace qserve::quantizer
