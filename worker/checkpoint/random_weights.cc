// See random_weights.h.
#include "worker/checkpoint/random_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/check.h"
#include "common/philox.h"

namespace qserve::worker::checkpoint {
namespace {

PhiloxBlock BlockOf(uint32_t name_hash, uint32_t seed, int64_t block) {
  const auto index = static_cast<uint64_t>(block);
  return Philox4x32(
      {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), name_hash, 0}, {seed, 0});
}

}  // namespace

RandomRange RangeOf(const TensorSpec& tensor) {
  switch (tensor.role) {
    case TensorRole::kEmbedding:
      return {1.0f, 0.0f};
    case TensorRole::kNormGain:
      return {0.1f, 1.0f};
    case TensorRole::kLinearBias:
      return {0.5f, 0.0f};
    case TensorRole::kLinearWeight:
    case TensorRole::kHead:
      break;
  }
  QSERVE_CHECK(tensor.shape.size() == 2);
  return {static_cast<float>(std::sqrt(3.0 / static_cast<double>(tensor.shape[1]))), 0.0f};
}

void FillRandom(std::string_view name, uint32_t seed, RandomRange range, int64_t begin,
                std::span<float> out) {
  const uint32_t hash = Fnv1a32(name);
  size_t done = 0;
  while (done < out.size()) {
    const int64_t element = begin + static_cast<int64_t>(done);
    const PhiloxBlock block = BlockOf(hash, seed, element / 4);
    for (auto word = static_cast<size_t>(element % 4); word < 4 && done < out.size();
         ++word, ++done) {
      const float uniform = static_cast<float>(block[word] >> 8) * 0x1p-23f - 1.0f;
      out[done] = range.offset + range.scale * uniform;
    }
  }
}

void FillRandomBytes(std::string_view name, uint32_t seed, int64_t begin_block,
                     std::span<uint8_t> out) {
  const uint32_t hash = Fnv1a32(name);
  for (size_t done = 0; done < out.size(); done += sizeof(PhiloxBlock)) {
    const PhiloxBlock block = BlockOf(hash, seed, begin_block++);
    std::memcpy(out.data() + done, block.data(), std::min(out.size() - done, sizeof(block)));
  }
}

}  // namespace qserve::worker::checkpoint
