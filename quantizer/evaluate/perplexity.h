// Perplexity of a model on a text: how surprised it is by each token, given those before it in the
// same window. Called by measure.cc and tests; runs on the caller's thread and the backend's.
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
  int64_t windows = 0;
  int64_t hits = 0;  // scored tokens that the model held for the likeliest

  double mean() const;        // of the surprise
  double perplexity() const;  // exp(mean)
};

struct MeasureOptions {
  int64_t chunk = 256;  // tokens of a step; changes no bit of what is served quantized
  int threads = 1;      // for the logits
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
