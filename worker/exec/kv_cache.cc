#include "worker/exec/kv_cache.h"

#include <algorithm>

#include <fmt/format.h>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/model/device_status.h"
#include "worker/plan/step_plan.h"

namespace qserve::worker::exec {
namespace {

using kernels::KvFormat;
using kernels::KvShape;

static_assert(plan::kBlockTokens == kernels::kKvPageTokens,
              "a block of the scheduler is a page of the device");

constexpr int64_t kMostDefaultBytes = int64_t{4} << 30;
// Of a device's free memory, by default: the rest is for what its driver rounds up.
constexpr int64_t kDevicePercent = 95;

int Bits(KvFormat format) {
  switch (format) {
    case KvFormat::kInt4:
      return 4;
    case KvFormat::kInt8:
      return 8;
    case KvFormat::kF16:
      return 16;
    case KvFormat::kF32:
      return 32;
  }
  return 0;
}

KvFormat OfBits(int bits) {
  return bits == 4 ? KvFormat::kInt4 : bits == 8 ? KvFormat::kInt8 : KvFormat::kF16;
}

}  // namespace

std::vector<KvFormat> LayerKvFormats(const checkpoint::ModelConfig& config, KvCacheType type,
                                     checkpoint::LoadQuantization quantization) {
  const auto all = [&](KvFormat format) {
    return std::vector(static_cast<size_t>(config.layers), format);
  };
  switch (type) {
    case KvCacheType::kInt4:
      return all(KvFormat::kInt4);
    case KvCacheType::kInt8:
      return all(KvFormat::kInt8);
    case KvCacheType::kFp16:
      return all(KvFormat::kF16);
    case KvCacheType::kFp32:
      return all(KvFormat::kF32);
    case KvCacheType::kAuto:
      break;
  }
  if (!config.layer_kv_bits.empty()) {
    QSERVE_CHECK(std::ssize(config.layer_kv_bits) == config.layers);
    std::vector<KvFormat> formats;
    for (const int bits : config.layer_kv_bits) formats.push_back(OfBits(bits));
    return formats;
  }
  if (config.kv_bits) return all(OfBits(*config.kv_bits));
  const bool quantized = config.scheme != checkpoint::Scheme::kFloat ||
                         quantization != checkpoint::LoadQuantization::kNone;
  return all(quantized ? KvFormat::kInt4 : KvFormat::kF16);
}

int64_t KvBytesPerToken(std::span<const KvShape> shapes) {
  int64_t bytes = 0;
  for (const KvShape& shape : shapes) {
    const bool quantized = shape.format == KvFormat::kInt4 || shape.format == KvFormat::kInt8;
    bytes += int64_t{2} * shape.kv_heads *
             (int64_t{shape.head_dim} * Bits(shape.format) / 8 + (quantized ? 4 : 0));
  }
  return bytes;
}

int64_t KvMemoryOfRank(int64_t kv_cache_memory, int ranks, const kernels::Backend& backend) {
  if (kv_cache_memory > 0) return kv_cache_memory / ranks;
  if (backend.info().kernel_family.starts_with("cpu")) {
    return std::min(kMostDefaultBytes, backend.info().memory_bytes / 4) / ranks;
  }
  return backend.AvailableMemory() / 100 * kDevicePercent;
}

std::vector<KvShape> KvCache::Shapes(const checkpoint::ModelConfig& config,
                                     const model::Shard& shard, std::span<const KvFormat> formats) {
  std::vector<KvShape> shapes;
  for (const KvFormat format : formats) {
    shapes.push_back(
        {.format = format, .kv_heads = shard.local_kv_heads(), .head_dim = config.head_dim});
  }
  return shapes;
}

std::unique_ptr<KvCache> KvCache::Empty(std::span<const KvShape> shapes, int32_t blocks) {
  QSERVE_CHECK(blocks > 0);
  std::unique_ptr<KvCache> cache(new KvCache);
  cache->blocks_ = blocks;
  cache->bytes_per_token_ = KvBytesPerToken(shapes);
  return cache;
}

absl::StatusOr<void*> KvCache::Allocate(kernels::Backend& backend, int64_t page_bytes) {
  ASSIGN_OR_RETURN(kernels::Buffer buffer,
                   model::ToAbsl(backend.Allocate(page_bytes * blocks_, "kv cache")));
  buffers_.push_back(std::move(buffer));
  return buffers_.back().data();
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(kernels::Backend& backend,
                                                         std::span<const KvShape> shapes,
                                                         int32_t blocks) {
  std::unique_ptr<KvCache> cache = Empty(shapes, blocks);
  int64_t page_bytes_of_all = 0;
  for (const KvShape& shape : shapes) {
    const int64_t page_bytes = kernels::KvPageBytes(shape);
    page_bytes_of_all += page_bytes;
    ASSIGN_OR_RETURN(void* const pages, cache->Allocate(backend, page_bytes));
    cache->layers_.push_back({.shape = shape, .pages = {.pages = pages, .page_bytes = page_bytes}});
  }
  // The promise of the format: nothing but codes, scales and minimums is stored.
  QSERVE_CHECK(page_bytes_of_all == cache->bytes_per_token_ * kernels::kKvPageTokens);
  return cache;
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::CreateScratch(kernels::Backend& backend,
                                                                std::span<const KvShape> shapes,
                                                                int32_t blocks) {
  std::unique_ptr<KvCache> cache = Empty(shapes, blocks);
  int64_t largest = 0;
  for (const KvShape& shape : shapes) largest = std::max(largest, kernels::KvPageBytes(shape));
  ASSIGN_OR_RETURN(void* const pages, cache->Allocate(backend, largest));
  for (const KvShape& shape : shapes) {
    cache->layers_.push_back(
        {.shape = shape, .pages = {.pages = pages, .page_bytes = kernels::KvPageBytes(shape)}});
  }
  return cache;
}

}  // namespace qserve::worker::exec
