// See known_models.h. The table is that of DeepCompressor's configurations (alpha; beta = 1 -
// alpha).
#include "quantizer/known_models.h"

#include <cstdint>

namespace qserve::quantizer {
namespace {

using worker::checkpoint::ModelConfig;
using worker::checkpoint::Scheme;

struct KnownModel {
  int64_t hidden, layers, intermediate, vocabulary, positions;
  double per_channel, group128;
};

constexpr KnownModel kModels[] = {
    {4096, 32, 11008, 32000, 4096, 0.05, 0.2},      // Llama-2-7B
    {5120, 40, 13824, 32000, 4096, 0.05, 0.35},     // Llama-2-13B
    {8192, 80, 28672, 32000, 4096, 0.1, 0.35},      // Llama-2-70B
    {4096, 32, 11008, 32000, 2048, 0.1, 0.3},       // Llama-7B
    {5120, 40, 13824, 32000, 2048, 0.0, 0.2},       // Llama-13B
    {6656, 60, 17920, 32000, 2048, 0.1, 0.25},      // Llama-30B
    {4096, 32, 14336, 128256, 8192, 0.1, 0.3},      // Llama-3-8B
    {8192, 80, 28672, 128256, 8192, 0.1, 0.35},     // Llama-3-70B
    {4096, 32, 14336, 128256, 131072, 0.05, 0.35},  // Llama-3.1-8B
    {8192, 80, 28672, 128256, 131072, 0.05, 0.3},   // Llama-3.1-70B
    {4096, 32, 14336, 32000, 32768, 0.0, 0.15},     // Mistral-7B
    {7168, 60, 20480, 64000, 4096, 0.15, 0.35},     // Yi-34B
};

}  // namespace

std::optional<transform::SmoothOutputOptions> PublishedSmoothing(const ModelConfig& config,
                                                                 Scheme scheme) {
  for (const KnownModel& known : kModels) {
    if (config.hidden_size != known.hidden || config.layers != known.layers ||
        config.intermediate_size != known.intermediate || config.vocab_size != known.vocabulary ||
        config.max_position_embeddings != known.positions) {
      continue;
    }
    const double alpha = scheme == Scheme::kQoqGroup128 ? known.group128 : known.per_channel;
    return transform::SmoothOutputOptions{.enabled = true, .alpha = alpha, .beta = 1 - alpha};
  }
  return std::nullopt;
}

}  // namespace qserve::quantizer
