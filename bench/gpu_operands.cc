#include "bench/gpu_operands.h"

#include <algorithm>
#include <span>
#include <utility>

#include "kernels/ops.h"
#include "kernels/quant/half.h"
#include "kernels/quant/rope_table.h"

namespace qserve::bench {
namespace {

using kernels::Backend;
using kernels::Buffer;
using kernels::FloatType;
using kernels::Status;
using kernels::StatusOr;
using kernels::WeightFormat;

constexpr int64_t kBlock = int64_t{4} << 20;  // random bytes that are made, then repeated
constexpr int64_t kFillRows = 2048;           // stored in the cache at a time

class Random {
 public:
  uint32_t Next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 32);
  }

 private:
  uint64_t state_ = 88172645463325252u;
};

StatusOr<Buffer> Repeated(Backend& gpu, const void* block, int64_t block_bytes, int64_t bytes) {
  StatusOr<Buffer> buffer = gpu.Allocate(bytes, "bench");
  if (!buffer.ok()) return buffer;
  for (int64_t at = 0; at < bytes; at += block_bytes) {
    gpu.CopyToDevice(buffer->as<uint8_t>() + at, block, std::min(block_bytes, bytes - at));
  }
  return buffer;
}

}  // namespace

StatusOr<Buffer> RandomCodes(Backend& gpu, int64_t bytes) {
  std::vector<int8_t> block(static_cast<size_t>(std::min(bytes, kBlock)));
  Random random;
  for (int8_t& code : block)
    code = static_cast<int8_t>(static_cast<int>(random.Next() % 255) - 127);
  return Repeated(gpu, block.data(), std::ssize(block), bytes);
}

StatusOr<Buffer> RandomHalves(Backend& gpu, int64_t count) {
  std::vector<uint16_t> block(static_cast<size_t>(std::min(count, kBlock / 2)));
  Random random;
  for (uint16_t& half : block) {
    half = kernels::FloatToHalf(static_cast<float>(random.Next() % 4096) / 2048.0f - 1.0f);
  }
  return Repeated(gpu, block.data(), std::ssize(block) * 2, count * 2);
}

StatusOr<GpuRows> RandomRows(Backend& gpu, int64_t rows, int64_t cols) {
  const int64_t stride = kernels::PaddedColumns(0, cols);
  StatusOr<Buffer> codes = RandomCodes(gpu, rows * stride);
  if (!codes.ok()) return codes.status();
  StatusOr<Buffer> scale = gpu.Allocate(rows * 4, "bench");
  if (!scale.ok()) return scale.status();
  StatusOr<Buffer> row_sum = gpu.Allocate(rows * 4, "bench");
  if (!row_sum.ok()) return row_sum.status();
  GpuRows made{*std::move(codes), *std::move(scale), *std::move(row_sum), {}};
  const std::vector<float> scales(static_cast<size_t>(rows), 0.01f);
  gpu.CopyToDevice(made.scale.data(), scales.data(), rows * 4);
  made.view = {.rows = rows,
               .cols = cols,
               .q = made.q.as<int8_t>(),
               .q_stride = stride,
               .scale = made.scale.as<float>(),
               .row_sum = made.row_sum.as<int32_t>()};
  return made;
}

kernels::LinearWeight RandomWeight(WeightFormat format, int64_t n, int64_t k) {
  kernels::LinearWeight weight{.format = format, .n = n, .k = k};
  weight.codes.resize(static_cast<size_t>(n * k));
  uint32_t state = 1;
  for (uint8_t& code : weight.codes) {
    state = state * 1664525u + 1013904223u;
    code = static_cast<uint8_t>(format == WeightFormat::kW8 ? state >> 25 : state >> 28);
  }
  weight.scale.assign(static_cast<size_t>(n), 0.0009765625f);
  if (format == WeightFormat::kW4PerChannel) {
    weight.scaled_zero.assign(static_cast<size_t>(n), 0.0078125f);
  }
  if (format == WeightFormat::kW4Group128) {
    weight.group_scale.assign(static_cast<size_t>(n * weight.groups()), 8);
    weight.group_offset.assign(static_cast<size_t>(n * weight.groups()), -64);
  }
  return weight;
}

PagedCache::PagedCache(Backend& gpu, const GpuShape& shape, int layers, int64_t sequences,
                       int64_t positions)
    : gpu_(gpu),
      shape_(shape),
      kv_{kernels::KvFormat::kInt4, shape.kv_heads, shape.head_dim},
      layers_(layers),
      sequences_(sequences),
      positions_(positions),
      pages_per_sequence_((positions + kernels::kKvPageTokens - 1) / kernels::kKvPageTokens) {
  const int64_t pages = sequences * pages_per_sequence_;
  layer_bytes_ = pages * KvPageBytes(kv_);
  for (int64_t p = 0; p < pages; ++p) table_.push_back(static_cast<int32_t>(p));
}

StatusOr<std::unique_ptr<PagedCache>> PagedCache::Create(Backend& gpu, const GpuShape& shape,
                                                         int layers, int64_t sequences,
                                                         int64_t positions) {
  std::unique_ptr<PagedCache> cache(new PagedCache(gpu, shape, layers, sequences, positions));
  StatusOr<Buffer> memory = gpu.Allocate(layers * cache->layer_bytes_, "kv cache");
  if (!memory.ok()) return memory.status();
  cache->memory_ = *std::move(memory);
  return cache;
}

int64_t PagedCache::TokenBytes(const GpuShape& shape) {
  return kernels::KvPageBytes({kernels::KvFormat::kInt4, shape.kv_heads, shape.head_dim}) /
         kernels::kKvPageTokens;
}

std::vector<kernels::SequenceSpan> PagedCache::Spans(int64_t count, int64_t position, int64_t rows,
                                                     int64_t first) const {
  std::vector<kernels::SequenceSpan> spans;
  for (int64_t s = 0; s < count; ++s) {
    spans.push_back(
        {s * rows, rows, position,
         std::span(table_).subspan(static_cast<size_t>((first + s) * pages_per_sequence_),
                                   static_cast<size_t>(pages_per_sequence_))});
  }
  return spans;
}

Status PagedCache::Fill() {
  const StatusOr<std::vector<float>> table =
      kernels::BuildRopeTable({.head_dim = shape_.head_dim}, positions_);
  if (!table.ok()) return table.status();
  const int64_t table_bytes = std::ssize(*table) * 4;
  StatusOr<Buffer> cos_sin = gpu_.Allocate(table_bytes, "bench");
  if (!cos_sin.ok()) return cos_sin.status();
  cos_sin_ = *std::move(cos_sin);
  gpu_.CopyToDevice(cos_sin_.data(), table->data(), table_bytes);
  const int64_t most_rows = std::min(positions_, kFillRows);
  const int64_t at_once = std::max<int64_t>(1, kFillRows / positions_);
  for (int i = 0; i < layers_; ++i) {
    const StatusOr<Buffer> qkv = RandomHalves(gpu_, at_once * most_rows * shape_.qkv());
    if (!qkv.ok()) return qkv.status();
    for (int64_t first = 0; first < sequences_; first += at_once) {
      for (int64_t position = 0; position < positions_; position += most_rows) {
        const int64_t count = std::min(at_once, sequences_ - first);
        const int64_t rows = std::min(most_rows, positions_ - position);
        const auto spans = Spans(count, position, rows, first);
        const Status status = gpu_.Run(0, [&] {
          kernels::ops::RopeAppend(gpu_, {.qkv = {qkv->data(), FloatType::kF16, count * rows,
                                                  shape_.qkv(), shape_.qkv()},
                                          .heads = shape_.heads,
                                          .kv = kv_,
                                          .cos_sin = cos_sin_.as<float>(),
                                          .sequences = spans,
                                          .layer = layer(i)});
        });
        if (!status.ok()) return status;
      }
    }
  }
  return {};
}

}  // namespace qserve::bench
