// See layer_quantizer.h.
#include "quantizer/layer_quantizer.h"

#include <fmt/format.h>

#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/quant/half.h"
#include "quantizer/attention_clip.h"
#include "quantizer/block_transformer.h"
#include "quantizer/calibration/gram.h"
#include "quantizer/solve/gptq.h"
#include "quantizer/transform/fold.h"

namespace qserve::quantizer {
namespace {

using calibration::Stage;

const std::vector<LinearIndex>& LinearsOf(Stage stage) {
  static const std::array<std::vector<LinearIndex>, 4> kLinears = {
      {{kQ, kK, kV}, {kO}, {kGate, kUp}, {kDown}}};
  return kLinears[static_cast<size_t>(stage)];
}

kernels::KvFormat KvFormatOf(int bits) {
  return bits == 4   ? kernels::KvFormat::kInt4
         : bits == 8 ? kernels::KvFormat::kInt8
                     : kernels::KvFormat::kF16;
}

absl::StatusOr<kernels::LinearWeight> Solve(const FloatLinear& linear, const MatrixF& target,
                                            const MatrixD& moments,
                                            const solve::SolveOptions& options) {
  absl::StatusOr<kernels::LinearWeight> rounded = solve::SolveLinear(target, moments, options);
  if (rounded.ok()) return rounded;
  return absl::InvalidArgumentError(
      fmt::format("{}: {}", linear.name, std::string(rounded.status().message())));
}

}  // namespace

absl::StatusOr<RoundedBlock> LayerQuantizer::Quantize(BlockWeights block, Streams& streams) {
  transform::FoldNormGains(block);
  if (rotation_ != nullptr) {
    transform::RotateResidual(*rotation_, block, settings_.solve.threads);
  }
  RETURN_IF_ERROR(TransformBlock(settings_.transform, settings_.solve,
                                 KvFormatOf(settings_.kv_bits), runner_, streams.exact, block));
  RoundedBlock rounded;
  rounded.q_gain = block.q_gain;
  rounded.k_gain = block.k_gain;
  if (runner_ != nullptr) {
    RETURN_IF_ERROR(Calibrate(block, streams, rounded));
    return rounded;
  }
  for (const Stage stage : {Stage::kQkv, Stage::kO, Stage::kGateUp, Stage::kDown}) {
    RETURN_IF_ERROR(QuantizeStage(stage, block, streams, rounded));
  }
  return rounded;
}

absl::Status LayerQuantizer::Calibrate(const BlockWeights& block, Streams& streams,
                                       RoundedBlock& to) {
  ASSIGN_OR_RETURN(exact_, runner_->Load(block, runner_->exact_kv()));
  ASSIGN_OR_RETURN(rounded_, runner_->Load(block, KvFormatOf(settings_.kv_bits)));
  RETURN_IF_ERROR(QuantizeStage(Stage::kQkv, block, streams, to));
  RETURN_IF_ERROR(QuantizeStage(Stage::kO, block, streams, to));
  for (MatrixF& hidden : streams.rounded) RETURN_IF_ERROR(runner_->AddAttention(rounded_, hidden));
  RETURN_IF_ERROR(QuantizeStage(Stage::kGateUp, block, streams, to));
  RETURN_IF_ERROR(QuantizeStage(Stage::kDown, block, streams, to));
  for (MatrixF& hidden : streams.rounded)
    RETURN_IF_ERROR(runner_->AddFeedForward(rounded_, hidden));
  return absl::OkStatus();
}

// What the stage's linear reads in full precision. Behind o and down the exact stream goes on at
// once: its block does not change any more, and its input is needed only here.
absl::StatusOr<MatrixF> LayerQuantizer::ExactInput(Stage stage, MatrixF& hidden) {
  MatrixF x;
  if (stage == Stage::kO) {
    RETURN_IF_ERROR(runner_->AddAttention(exact_, hidden, &x));
  } else if (stage == Stage::kDown) {
    RETURN_IF_ERROR(runner_->AddFeedForward(exact_, hidden, &x));
  } else {
    return runner_->Input(exact_, stage, hidden);
  }
  return x;
}

absl::StatusOr<InputMoments> LayerQuantizer::Collect(Stage stage, Streams& streams) {
  kernels::Backend& backend = runner_->backend();
  InputMoments sum;
  double tokens = 0;
  for (size_t w = 0; w < streams.exact.size(); ++w) {
    RETURN_IF_ERROR(check_());
    ASSIGN_OR_RETURN(MatrixF x, runner_->Input(rounded_, stage, streams.rounded[w]));
    if (settings_.int8_inputs) calibration::SimulateInt8(x);
    RETURN_IF_ERROR(calibration::AddGram(backend, x, x, sum.moments));
    ASSIGN_OR_RETURN(MatrixF exact, ExactInput(stage, streams.exact[w]));
    if (settings_.correct_inputs > 0) {
      exact -= x;
      RETURN_IF_ERROR(calibration::AddGram(backend, exact, x, sum.inputs));
    }
    tokens += static_cast<double>(x.rows());
  }
  sum.moments = (0.5 / tokens) * (sum.moments + sum.moments.transpose()).eval();
  sum.inputs *= settings_.correct_inputs / tokens;
  return sum;
}

absl::StatusOr<MatrixF> LayerQuantizer::Corrected(const MatrixF& weights,
                                                  const InputMoments& input) const {
  if (input.inputs.size() == 0) return weights;
  MatrixD change;
  RETURN_IF_ERROR(calibration::AddGram(runner_->backend(), weights.transpose(),
                                       input.inputs.cast<float>(), change));
  return solve::Correct(weights, change, input.moments, settings_.correction_damping,
                        settings_.solve.threads);
}

absl::Status LayerQuantizer::QuantizeStage(Stage stage, const BlockWeights& block, Streams& streams,
                                           RoundedBlock& to) {
  InputMoments input;
  if (runner_ != nullptr) {
    ASSIGN_OR_RETURN(input, Collect(stage, streams));
  }
  std::vector<const kernels::LinearWeight*> parts;
  std::array<MatrixF, kLinearCount> targets;
  for (const LinearIndex i : LinearsOf(stage)) {
    RETURN_IF_ERROR(check_());
    const FloatLinear& linear = block[i];
    MatrixF& target = targets[i];
    target = linear.weight;
    if (runner_ != nullptr) {
      ASSIGN_OR_RETURN(target, Corrected(linear.weight, input));
    } else {
      input.moments = MatrixD::Identity(target.cols(), target.cols());
    }
    ASSIGN_OR_RETURN(kernels::LinearWeight rounded,
                     Solve(linear, target, input.moments, settings_.solve));
    if (spdlog::should_log(spdlog::level::debug)) {  // takes as long as the rounding
      LOG_DEBUG("{}: relative error {:.2e}", linear.name,
                solve::RelativeError(target, rounded, input.moments));
    }
    for (int64_t n = 0; n < linear.bias.size(); ++n) {
      rounded.bias.push_back(kernels::RoundToHalf(linear.bias[n]));
    }
    to.linears[i] = std::move(rounded);
    parts.push_back(&to.linears[i]);
  }
  if (stage == Stage::kQkv && settings_.clip_attention.enabled) {
    const auto solve = [&](LinearIndex i, double ratio) -> absl::StatusOr<kernels::LinearWeight> {
      RETURN_IF_ERROR(check_());
      solve::SolveOptions options = settings_.solve;
      options.clip_search = true;
      options.fixed_ratio = ratio;
      return Solve(block[i], targets[i], input.moments, options);
    };
    ASSIGN_OR_RETURN(const AttentionClipErrors errors,
                     ClipByAttention(settings_.clip_attention,
                                     {.block = block,
                                      .runner = *runner_,
                                      .exact = exact_,
                                      .rounded = rounded_,
                                      .exact_hidden = streams.exact,
                                      .rounded_hidden = streams.rounded},
                                     solve, to.linears));
    LOG_DEBUG("attention of block {}: clipping takes its error from {:.4g} to {:.4g}", block.layer,
              errors.before.sum(), errors.after.sum());
  }
  return runner_ != nullptr ? runner_->Replace(stage, parts, rounded_) : absl::OkStatus();
}

}  // namespace qserve::quantizer
