#include "worker/model/sharding.h"

#include <algorithm>
#include <numeric>
#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace qserve::worker::model {
namespace {

using checkpoint::ModelConfig;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Units of kCutMultiple columns; the last one may be short.
int64_t IntermediateUnits(const ModelConfig& config) {
  return CeilDiv(config.intermediate_size, kCutMultiple);
}

bool IsLegal(const ModelConfig& config, int size) {
  return size >= 1 && config.heads % size == 0 && IntermediateUnits(config) >= size;
}

// As even as whole units allow: sizes differ by one unit at most.
Range CutIntermediate(const ModelConfig& config, int rank, int size) {
  const int64_t units = IntermediateUnits(config);
  return {std::min(config.intermediate_size, units * rank / size * kCutMultiple),
          std::min(config.intermediate_size, units * (rank + 1) / size * kCutMultiple)};
}

// Aligned runs of gcd(local heads, heads per kv head) query heads share one kv head, whatever the
// degree: each run gets one.
std::vector<int> CutKvHeads(const ModelConfig& config, Range heads) {
  const int64_t group = config.heads / config.kv_heads;
  const int64_t run = std::gcd(heads.size(), group);
  std::vector<int> kv_heads;
  for (int64_t head = heads.begin; head < heads.end; head += run) {
    kv_heads.push_back(static_cast<int>(head / group));
  }
  return kv_heads;
}

}  // namespace

std::vector<int> LegalDegrees(const ModelConfig& config) {
  std::vector<int> degrees;
  for (int size = 1; size <= config.heads; ++size) {
    if (IsLegal(config, size)) degrees.push_back(size);
  }
  return degrees;
}

absl::StatusOr<Shard> MakeShard(const ModelConfig& config, int rank, int size) {
  if (config.heads <= 0 || config.kv_heads <= 0 || config.heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(fmt::format("{} query heads do not share {} kv heads evenly",
                                                  config.heads, config.kv_heads));
  }
  if (!IsLegal(config, size)) {
    return absl::InvalidArgumentError(fmt::format(
        "tensor-parallel size {} does not cut this model ({} query heads, {} "
        "intermediate columns); legal sizes: {}",
        size, config.heads, config.intermediate_size, fmt::join(LegalDegrees(config), ", ")));
  }
  if (rank < 0 || rank >= size) {
    return absl::InvalidArgumentError(fmt::format("rank {} of a group of {}", rank, size));
  }
  Shard shard;
  shard.rank = rank;
  shard.size = size;
  const int64_t heads = config.heads / size;
  shard.heads = {rank * heads, (rank + 1) * heads};
  shard.kv_heads = CutKvHeads(config, shard.heads);
  shard.intermediate = CutIntermediate(config, rank, size);
  shard.vocab_rows = CeilDiv(CeilDiv(config.vocab_size, size), kCutMultiple) * kCutMultiple;
  shard.vocab = {std::min(config.vocab_size, rank * shard.vocab_rows),
                 std::min(config.vocab_size, (rank + 1) * shard.vocab_rows)};
  return shard;
}

}  // namespace qserve::worker::model
