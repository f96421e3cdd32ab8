// A decoder of a known shape with random weights, for the time of whole steps: its layers share two
// sets of weights, taken in turn, which is more than the second-level cache holds and little enough
// to be made in seconds. No sampling. One thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "bench/gpu_operands.h"
#include "bench/gpu_shapes.h"
#include "kernels/backend.h"

namespace qserve::bench {

class GpuModel {
 public:
  // For steps of at most `rows` rows, of which at most `sampled` go through the head, at positions
  // below `positions`.
  static kernels::StatusOr<std::unique_ptr<GpuModel>> Create(kernels::Backend& gpu,
                                                             const GpuShape& shape, int64_t rows,
                                                             int64_t sampled, int64_t positions);

  // All layers over `rows` rows, and the head over the first `sampled` of them. Issues operations.
  void Step(const PagedCache& cache, const std::vector<kernels::SequenceSpan>& spans, int64_t rows,
            int64_t sampled);

 private:
  GpuModel(kernels::Backend& gpu, const GpuShape& shape) : gpu_(gpu), shape_(shape) {}
  kernels::Status MakeWeights();
  kernels::Status MakeBuffers(int64_t rows, int64_t sampled, int64_t positions);
  void Layer(int index, const PagedCache& cache, const std::vector<kernels::SequenceSpan>& spans,
             int64_t rows);

  kernels::FloatMatrix Half(const kernels::Buffer& memory, int64_t rows, int64_t cols) const;
  kernels::Activation Input(int64_t rows, int64_t cols) const;
  void Norm(int64_t rows);
  void Linear(const kernels::PackedLinear& weight, const kernels::Activation& x,
              const kernels::FloatMatrix& out);

  kernels::Backend& gpu_;
  const GpuShape shape_;
  kernels::Buffer embedding_, residual_, wide_, delta_, gain_, cos_sin_, logits_;
  GpuRows input_;
  std::vector<int32_t> ids_;
  std::array<std::array<std::unique_ptr<kernels::PackedLinear>, 4>, 2> layers_;
  std::unique_ptr<kernels::PackedLinear> head_;
};

}  // namespace qserve::bench
