// Perplexity of a model on a text: how surprised it is by each token, given those before it in the
// same window; and how far its next-token distributions are from a reference's. Called by
// evaluation.cc and tests; runs on the caller's thread and the backends'.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/exec/direct_runner.h"

namespace qserve::quantizer {

// Tokens [begin, begin + size) of the text, read as a sequence of their own; those from `scored` on
// count, the first of a sequence never does.
struct Window {
  int64_t begin = 0;
  int64_t size = 0;
  int64_t scored = 1;
};

// Windows of `length` tokens, one every `stride`: with stride = length the convention of GPTQ (the
// text cut into pieces, a rest shorter than a window dropped), with a shorter stride each token is
// scored once, by the first window that has it, with more context. A text shorter than `length` is
// one window.
std::vector<Window> MakeWindows(int64_t tokens, int64_t length, int64_t stride);

struct Perplexity {
  std::vector<float> surprise;  // of every scored token, in order: -ln p(token | those before it)
  // Beside a reference, for each of them: Divergence of the model from it. Empty without one.
  std::vector<float> divergence;
  int64_t windows = 0;
  int64_t hits = 0;  // scored tokens that the model held for the likeliest

  double mean() const;        // of the surprise
  double perplexity() const;  // exp(mean)
};

// KL(reference || model) = sum over ids of p_ref (ln p_ref - ln p), in nats, of the distributions
// that two rows of logits stand for, of one length and finite. Never negative but for rounding;
// exactly 0 for equal rows.
double Divergence(std::span<const float> reference, std::span<const float> model);

// The model to compare with: it reads the same tokens, step by step beside the one that is
// measured, so that the logits of no more than one step of each are held.
struct Reference {
  worker::exec::DirectRunner* runner = nullptr;  // null: none; sequences and steps as long
  kernels::Backend* backend = nullptr;           // the runner's
};

struct MeasureOptions {
  int64_t chunk = 256;  // tokens of a step; changes no bit of what is served quantized
  int threads = 1;      // for the logits
  Reference reference;
  std::function<void(int64_t done, int64_t total)> progress;  // windows; may be empty
  const std::atomic<bool>* interrupted = nullptr;             // may be null; set: Cancelled
};

// Errors: the runner's; Internal when logits are not finite.
absl::StatusOr<Perplexity> MeasurePerplexity(worker::exec::DirectRunner& runner,
                                             kernels::Backend& backend,
                                             std::span<const int32_t> tokens,
                                             std::span<const Window> windows,
                                             const MeasureOptions& options);

}  // namespace qserve::quantizer
