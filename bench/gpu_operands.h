// What the GPU benchmarks compute on: random weights, activations and KV caches, made in the
// device's memory. Random throughout: zeros draw less power than a model does. Errors are those of
// the backend, out of memory above all. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bench/gpu_shapes.h"
#include "kernels/backend.h"

namespace qserve::bench {

// `bytes` of int8 codes, -127 to 127.
kernels::StatusOr<kernels::Buffer> RandomCodes(kernels::Backend& gpu, int64_t bytes);
// `count` fp16 values in [-1, 1).
kernels::StatusOr<kernels::Buffer> RandomHalves(kernels::Backend& gpu, int64_t count);

// int8 rows with scales, as linears read them.
struct GpuRows {
  kernels::Buffer q, scale, row_sum;
  kernels::Activation view;
};
kernels::StatusOr<GpuRows> RandomRows(kernels::Backend& gpu, int64_t rows, int64_t cols);

// Random codes; scales that keep every value in int8.
kernels::LinearWeight RandomWeight(kernels::WeightFormat format, int64_t n, int64_t k);

// Sequences of equal length in a paged cache of `layers` layers.
class PagedCache {
 public:
  static kernels::StatusOr<std::unique_ptr<PagedCache>> Create(kernels::Backend& gpu,
                                                               const GpuShape& shape, int layers,
                                                               int64_t sequences,
                                                               int64_t positions);
  // Bytes that one token takes in one layer.
  static int64_t TokenBytes(const GpuShape& shape);

  // Stores random keys and values at every position.
  kernels::Status Fill();

  kernels::KvLayer layer(int i) const {
    return {memory_.as<uint8_t>() + i * layer_bytes_, KvPageBytes(kv_)};
  }
  const kernels::KvShape& kv() const { return kv_; }
  // Of all positions; there once the cache was filled.
  const float* cos_sin() const { return cos_sin_.as<float>(); }
  // `rows` rows of each of `count` sequences at `position`, from sequence `first` on.
  std::vector<kernels::SequenceSpan> Spans(int64_t count, int64_t position, int64_t rows,
                                           int64_t first = 0) const;

 private:
  PagedCache(kernels::Backend& gpu, const GpuShape& shape, int layers, int64_t sequences,
             int64_t positions);

  kernels::Backend& gpu_;
  const GpuShape shape_;
  const kernels::KvShape kv_;
  const int layers_;
  const int64_t sequences_;
  const int64_t positions_;
  const int64_t pages_per_sequence_;
  int64_t layer_bytes_ = 0;
  kernels::Buffer memory_, cos_sin_;
  std::vector<int32_t> table_;
};

}  // namespace qserve::bench
