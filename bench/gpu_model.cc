#include "bench/gpu_model.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "kernels/ops.h"
#include "kernels/quant/rope_table.h"

namespace qserve::bench {
namespace {

using kernels::Activation;
using kernels::Backend;
using kernels::Buffer;
using kernels::FloatMatrix;
using kernels::FloatType;
using kernels::Status;
using kernels::StatusOr;
using kernels::WeightFormat;

constexpr int32_t kVocabulary = 1024;  // rows of the embedding, which need not be all

Status Into(StatusOr<Buffer> made, Buffer* buffer) {
  if (made.ok()) *buffer = *std::move(made);
  return made.status();
}

}  // namespace

StatusOr<std::unique_ptr<GpuModel>> GpuModel::Create(Backend& gpu, const GpuShape& shape,
                                                     int64_t rows, int64_t sampled,
                                                     int64_t positions) {
  std::unique_ptr<GpuModel> model(new GpuModel(gpu, shape));
  Status status = model->MakeBuffers(rows, sampled, positions);
  if (status.ok()) status = model->MakeWeights();
  if (!status.ok()) return status;
  return model;
}

Status GpuModel::MakeBuffers(int64_t rows, int64_t sampled, int64_t positions) {
  const int64_t wide = std::max(shape_.qkv(), 2 * shape_.intermediate);
  const int64_t input = std::max({shape_.hidden, shape_.attention(), shape_.intermediate});
  StatusOr<GpuRows> input_rows = RandomRows(gpu_, rows, input);
  if (!input_rows.ok()) return input_rows.status();
  input_ = *std::move(input_rows);
  const std::vector<float> gain(static_cast<size_t>(shape_.hidden), 1.0f);
  const StatusOr<std::vector<float>> table =
      kernels::BuildRopeTable({.head_dim = shape_.head_dim, .theta = 500000}, positions);
  if (!table.ok()) return table.status();
  Status status = Into(RandomHalves(gpu_, kVocabulary * shape_.hidden), &embedding_);
  if (status.ok()) status = Into(RandomHalves(gpu_, rows * shape_.hidden), &residual_);
  if (status.ok()) status = Into(RandomHalves(gpu_, rows * shape_.hidden), &delta_);
  if (status.ok()) status = Into(RandomHalves(gpu_, rows * wide), &wide_);
  if (status.ok()) status = Into(gpu_.Allocate(std::ssize(gain) * 4, "bench"), &gain_);
  if (status.ok()) status = Into(gpu_.Allocate(std::ssize(*table) * 4, "bench"), &cos_sin_);
  if (status.ok()) {
    status = Into(gpu_.Allocate(sampled * shape_.vocabulary * 4, "bench"), &logits_);
  }
  if (!status.ok()) return status;
  gpu_.CopyToDevice(gain_.data(), gain.data(), std::ssize(gain) * 4);
  gpu_.CopyToDevice(cos_sin_.data(), table->data(), std::ssize(*table) * 4);
  for (int64_t r = 0; r < rows; ++r) ids_.push_back(static_cast<int32_t>(r * 37 % kVocabulary));
  return {};
}

Status GpuModel::MakeWeights() {
  const std::pair<int64_t, int64_t> sizes[] = {{shape_.qkv(), shape_.hidden},
                                               {shape_.hidden, shape_.attention()},
                                               {2 * shape_.intermediate, shape_.hidden},
                                               {shape_.hidden, shape_.intermediate}};
  for (size_t i = 0; i < std::size(sizes); ++i) {
    const auto weight = RandomWeight(WeightFormat::kW4Group128, sizes[i].first, sizes[i].second);
    for (auto& layer : layers_) {
      auto packed = gpu_.Pack(weight);
      if (!packed.ok()) return packed.status();
      layer[i] = *std::move(packed);
    }
  }
  auto head = gpu_.Pack(RandomWeight(WeightFormat::kW8, shape_.vocabulary, shape_.hidden));
  if (!head.ok()) return head.status();
  head_ = *std::move(head);
  return {};
}

void GpuModel::Step(const PagedCache& cache, const std::vector<kernels::SequenceSpan>& spans,
                    int64_t rows, int64_t sampled) {
  // The residual would grow from step to step otherwise.
  kernels::ops::Embed(gpu_,
                      {.table = {embedding_.data(), FloatType::kF16, 0, kVocabulary, shape_.hidden},
                       .token_ids = std::span<const int32_t>(ids_).first(static_cast<size_t>(rows)),
                       .out = Half(residual_, rows, shape_.hidden)});
  for (int i = 0; i < shape_.layers; ++i) Layer(i, cache, spans, rows);
  if (sampled == 0) return;
  Norm(rows);
  Linear(*head_, Input(sampled, shape_.hidden),
         {logits_.as<float>(), sampled, shape_.vocabulary, shape_.vocabulary});
}

void GpuModel::Layer(int index, const PagedCache& cache,
                     const std::vector<kernels::SequenceSpan>& spans, int64_t rows) {
  const auto& layer = layers_[static_cast<size_t>(index % 2)];
  Norm(rows);
  const FloatMatrix qkv = Half(wide_, rows, shape_.qkv());
  Linear(*layer[0], Input(rows, shape_.hidden), qkv);
  kernels::ops::RopeAppend(gpu_, {.qkv = qkv,
                                  .heads = shape_.heads,
                                  .kv = cache.kv(),
                                  .cos_sin = cos_sin_.as<float>(),
                                  .sequences = spans,
                                  .layer = cache.layer(index)});
  kernels::ops::Attention(gpu_, {.q = kernels::Columns(qkv, 0, shape_.attention()),
                                 .heads = shape_.heads,
                                 .kv = cache.kv(),
                                 .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
                                 .sequences = spans,
                                 .layer = cache.layer(index),
                                 .out = Input(rows, shape_.attention())});
  Linear(*layer[1], Input(rows, shape_.attention()), Half(delta_, rows, shape_.hidden));
  Norm(rows);
  Linear(*layer[2], Input(rows, shape_.hidden), Half(wide_, rows, 2 * shape_.intermediate));
  kernels::ops::SiluMul(gpu_, {.gate_up = Half(wide_, rows, 2 * shape_.intermediate),
                               .out = Input(rows, shape_.intermediate)});
  Linear(*layer[3], Input(rows, shape_.intermediate), Half(delta_, rows, shape_.hidden));
}

FloatMatrix GpuModel::Half(const Buffer& memory, int64_t rows, int64_t cols) const {
  return {memory.data(), FloatType::kF16, rows, cols, cols};
}

Activation GpuModel::Input(int64_t rows, int64_t cols) const {
  Activation view = input_.view;
  view.rows = rows;
  view.cols = cols;
  view.q_stride = kernels::PaddedColumns(0, cols);
  return view;
}

void GpuModel::Norm(int64_t rows) {
  kernels::ops::Norm(gpu_, {.residual = Half(residual_, rows, shape_.hidden),
                            .delta = Half(delta_, rows, shape_.hidden),
                            .gain = gain_.as<float>(),
                            .epsilon = 1e-5f,
                            .out = Input(rows, shape_.hidden)});
}

void GpuModel::Linear(const kernels::PackedLinear& weight, const Activation& x,
                      const FloatMatrix& out) {
  kernels::ops::Linear(gpu_, {.weight = &weight, .x = x, .out = out});
}

}  // namespace qserve::bench
