#include "worker/exec/memory_need.h"

#include <fmt/format.h>

#include "kernels/quant/gpu_weight.h"
#include "worker/exec/kv_cache.h"

namespace qserve::worker::exec {
namespace {

using checkpoint::ModelConfig;
using kernels::WeightFormat;

constexpr int64_t kFloatBytes = sizeof(float);

int64_t PackedBytes(WeightFormat format, int64_t n, int64_t k) {
  kernels::LinearWeight weight;
  weight.format = format;
  weight.n = n;
  weight.k = k;
  return kernels::GpuLayoutOf(weight).bytes;
}

std::string Mebibytes(int64_t bytes) { return fmt::format("{} MiB", (bytes >> 20) + 1); }

}  // namespace

int64_t WeightBytesOfRank(const ModelConfig& config, const model::Shard& shard,
                          const ServedFormats& formats) {
  const int64_t hidden = config.hidden_size;
  const int64_t q_rows = int64_t{shard.local_heads()} * config.head_dim;
  const int64_t kv_rows = int64_t{shard.local_kv_heads()} * config.head_dim;
  const int64_t layer = PackedBytes(formats.linears, q_rows + 2 * kv_rows, hidden) +
                        PackedBytes(formats.linears, hidden, q_rows) +
                        PackedBytes(formats.linears, 2 * shard.intermediate.size(), hidden) +
                        PackedBytes(formats.linears, hidden, shard.intermediate.size()) +
                        2 * hidden * kFloatBytes;
  return config.layers * layer + shard.vocab.size() * hidden * kernels::BytesOf(config.float_type) +
         PackedBytes(formats.lm_head, shard.vocab_rows, hidden) + hidden * kFloatBytes;
}

std::string DegreeAdvice(const ModelConfig& config, const ServedFormats& formats, int degree,
                         int64_t tokens, int64_t free_bytes) {
  if (!kernels::HasGpuOrder(formats.linears) || !kernels::HasGpuOrder(formats.lm_head)) return "";
  std::string last;
  for (const int larger : model::LegalDegrees(config)) {
    const auto shard = model::MakeShard(config, 0, larger);
    if (larger <= degree || !shard.ok()) continue;
    const int64_t weights = WeightBytesOfRank(config, *shard, formats);
    const int64_t kv = KvBytesPerToken(KvCache::Shapes(config, *shard, formats.kv)) * tokens;
    last = fmt::format("{} of weights and {} of keys and values for {} tokens", Mebibytes(weights),
                       Mebibytes(kv), tokens);
    if (weights + kv > free_bytes) continue;
    return fmt::format(
        "; with --tensor-parallel-size {} a rank would have {}, on devices with {} each as this "
        "one had",
        larger, last, Mebibytes(free_bytes));
  }
  if (last.empty()) return "";
  return fmt::format(
      "; no tensor-parallel degree of this model fits devices with {}: even of the "
      "largest a rank has {}",
      Mebibytes(free_bytes), last);
}

}  // namespace qserve::worker::exec
