// See perplexity.h.
#include "quantizer/evaluate/perplexity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "common/check.h"
#include "common/status_macros.h"

namespace qserve::quantizer {
namespace {

struct Score {
  float surprise = 0;
  float divergence = 0;
  bool hit = false;
};

struct Normalizer {
  float highest;
  double log_sum;  // ln of the sum of exponentials, of logits less the highest
};

// In double: a vocabulary is a long sum.
Normalizer NormalizerOf(std::span<const float> logits) {
  float highest = logits[0];
  for (const float logit : logits) highest = std::max(highest, logit);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - highest);
  return {highest, std::log(sum)};
}

Score ScoreRow(std::span<const float> logits, int32_t token) {
  const float wanted = logits[static_cast<size_t>(token)];
  const auto [highest, log_sum] = NormalizerOf(logits);
  return {.surprise = static_cast<float>(log_sum + double{highest} - double{wanted}),
          .hit = wanted == highest};
}

// `reference` is empty or as large as `logits`. Rows are independent, so that the number of threads
// changes nothing.
void ScoreRows(std::span<const float> logits, std::span<const float> reference,
               std::span<const int32_t> tokens, std::span<Score> scores, int threads) {
  const size_t count = tokens.size(), vocabulary = logits.size() / count;
  const size_t parts = std::min(count, static_cast<size_t>(std::max(threads, 1)));
  const auto work = [&](size_t part) {
    for (size_t row = part; row < count; row += parts) {
      const auto own = logits.subspan(row * vocabulary, vocabulary);
      scores[row] = ScoreRow(own, tokens[row]);
      if (reference.empty()) continue;
      scores[row].divergence =
          static_cast<float>(Divergence(reference.subspan(row * vocabulary, vocabulary), own));
    }
  };
  std::vector<std::jthread> others;
  for (size_t part = 1; part < parts; ++part) others.emplace_back(work, part);
  work(0);
}

// Rows from `skipped` on.
void CopyRows(kernels::Backend& backend, kernels::Matrix<const float> logits, int64_t skipped,
              std::vector<float>& host) {
  host.resize(static_cast<size_t>((logits.rows - skipped) * logits.cols));
  for (int64_t row = skipped; row < logits.rows; ++row) {
    backend.CopyToHost(host.data() + (row - skipped) * logits.cols, logits.row(row),
                       logits.cols * int64_t{sizeof(float)});
  }
}

class Measurement {
 public:
  Measurement(worker::exec::DirectRunner& runner, kernels::Backend& backend,
              const MeasureOptions& options)
      : runner_(runner), backend_(backend), options_(options) {}

  absl::Status Add(std::span<const int32_t> tokens, int64_t scored);
  Perplexity Take() { return std::move(result_); }

 private:
  absl::Status AddStep(std::span<const int32_t> tokens, int64_t scored, int64_t first,
                       kernels::Matrix<const float> logits);

  worker::exec::DirectRunner& runner_;
  kernels::Backend& backend_;
  const MeasureOptions& options_;
  std::vector<float> host_, reference_host_;
  Perplexity result_;
};

absl::Status Measurement::Add(std::span<const int32_t> tokens, int64_t scored) {
  // The logits behind the last token predict nothing that is known.
  RETURN_IF_ERROR(runner_.Visit(tokens.first(tokens.size() - 1), options_.chunk,
                                [&](int64_t first, kernels::Matrix<const float> logits) {
                                  return AddStep(tokens, scored, first, logits);
                                }));
  ++result_.windows;
  return absl::OkStatus();
}

absl::Status Measurement::AddStep(std::span<const int32_t> tokens, int64_t scored, int64_t first,
                                  kernels::Matrix<const float> logits) {
  const Reference& reference = options_.reference;
  if (reference.runner != nullptr) {
    RETURN_IF_ERROR(reference.runner->Step(
        tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(logits.rows)), first));
  }
  // Row r predicts token first + r + 1.
  const int64_t skipped = std::clamp<int64_t>(scored - 1 - first, 0, logits.rows);
  if (skipped == logits.rows) return absl::OkStatus();
  CopyRows(backend_, logits, skipped, host_);
  if (reference.runner != nullptr) {
    const kernels::Matrix<const float> theirs = {
        .data = reference.runner->model().logits().data,
        .rows = logits.rows,
        .cols = logits.cols,
        .stride = reference.runner->model().logits().stride};
    CopyRows(*reference.backend, theirs, skipped, reference_host_);
  }
  std::vector<Score> scores(static_cast<size_t>(logits.rows - skipped));
  ScoreRows(host_, reference_host_,
            tokens.subspan(static_cast<size_t>(first + skipped + 1), scores.size()), scores,
            options_.threads);
  for (const Score& score : scores) {
    if (!std::isfinite(score.surprise) || !std::isfinite(score.divergence))
      return absl::InternalError("the model's logits are not finite");
    result_.surprise.push_back(score.surprise);
    if (reference.runner != nullptr) result_.divergence.push_back(score.divergence);
    result_.hits += score.hit ? 1 : 0;
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Window> MakeWindows(int64_t tokens, int64_t length, int64_t stride) {
  QSERVE_CHECK(tokens >= 2 && length >= 2 && stride >= 1 && stride <= length);
  length = std::min(length, tokens);
  std::vector<Window> windows = {{.begin = 0, .size = length, .scored = 1}};
  int64_t scored_end = length;
  for (int64_t begin = stride; begin + length <= tokens; begin += stride) {
    windows.push_back(
        {.begin = begin, .size = length, .scored = std::max<int64_t>(scored_end - begin, 1)});
    scored_end = begin + length;
  }
  return windows;
}

double Divergence(std::span<const float> reference, std::span<const float> model) {
  const Normalizer theirs = NormalizerOf(reference), own = NormalizerOf(model);
  double sum = 0;
  for (size_t id = 0; id < reference.size(); ++id) {
    const double log_theirs = double{reference[id]} - double{theirs.highest} - theirs.log_sum;
    const double log_own = double{model[id]} - double{own.highest} - own.log_sum;
    sum += std::exp(log_theirs) * (log_theirs - log_own);
  }
  return sum;
}

double Perplexity::mean() const {
  double sum = 0;
  for (const float value : surprise) sum += value;
  return surprise.empty() ? 0 : sum / static_cast<double>(surprise.size());
}

double Perplexity::perplexity() const { return std::exp(mean()); }

absl::StatusOr<Perplexity> MeasurePerplexity(worker::exec::DirectRunner& runner,
                                             kernels::Backend& backend,
                                             std::span<const int32_t> tokens,
                                             std::span<const Window> windows,
                                             const MeasureOptions& options) {
  Measurement measurement(runner, backend, options);
  for (size_t i = 0; i < windows.size(); ++i) {
    if (options.interrupted != nullptr && *options.interrupted)
      return absl::CancelledError("interrupted");
    const Window& window = windows[i];
    RETURN_IF_ERROR(measurement.Add(
        tokens.subspan(static_cast<size_t>(window.begin), static_cast<size_t>(window.size)),
        window.scored));
    if (options.progress)
      options.progress(static_cast<int64_t>(i + 1), static_cast<int64_t>(windows.size()));
  }
  return measurement.Take();
}

}  // namespace qserve::quantizer
