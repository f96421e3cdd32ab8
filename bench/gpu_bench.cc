// What the GPU backend reaches of what its GPU can do, as JSON lines: ceilings first, then linears,
// attention, whole steps and offline throughput. Weights and inputs are random; what is read is
// rotated past the second-level cache. Called by tests/gpu/bench.sh; peers are measured there by
// peers.py, in the same run. It links kernels/ alone.
#include <cmath>
#include <cstring>
#include <memory>
#include <set>
#include <span>

#include "bench/gpu_shapes.h"
#include "bench/gpu_timer.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/peaks.h"
#include "kernels/cuda/rank_sum.h"
#include "kernels/device_factory.h"
#include "kernels/ops.h"

namespace qserve::bench {
namespace {

using kernels::Activation;
using kernels::Backend;
using kernels::Buffer;
using kernels::FloatMatrix;
using kernels::FloatType;
using kernels::WeightFormat;

constexpr int64_t kBeyondCache = int64_t{160} << 20;  // more than any GPU's second level holds

struct Ceilings {
  double bytes = 0;  // a second, read and written
  double int8 = 0;   // operations a second, two a multiply-add
  double half = 0;
};

class GpuBench {
 public:
  GpuBench(std::unique_ptr<Backend> gpu, std::set<std::string> parts)
      : parts_(std::move(parts)), gpu_(std::move(gpu)) {
    owner_ = dynamic_cast<kernels::cuda::CudaStreamOwner*>(gpu_.get());
    timer_ = std::make_unique<GpuTimer>(gpu_.get());
  }

  void Run() {
    std::printf("{\"what\": \"gpu\", \"name\": \"%s\", \"memory_bytes\": %lld}\n",
                gpu_->info().name.c_str(), static_cast<long long>(gpu_->info().memory_bytes));
    MeasureCeilings();
    for (const GpuShape& shape : kGpuShapes) {
      if (Wanted("linears")) Linears(shape);
      if (Wanted("attention")) AttentionTable(shape);
      if (Wanted("steps")) Steps(shape);
    }
  }

 private:
  bool Wanted(const char* part) const { return parts_.empty() || parts_.count(part) > 0; }

  Buffer Allocate(int64_t bytes) { return OrDie(gpu_->Allocate(bytes, "bench")); }
  Buffer Random(int64_t bytes);
  void MeasureCeilings();
  void Linears(const GpuShape& shape);
  void AttentionTable(const GpuShape& shape);
  void Steps(const GpuShape& shape);

  const std::set<std::string> parts_;
  std::unique_ptr<Backend> gpu_;
  kernels::cuda::CudaStreamOwner* owner_ = nullptr;
  std::unique_ptr<GpuTimer> timer_;
  Ceilings ceilings_;
};

Buffer GpuBench::Random(int64_t bytes) {
  std::vector<uint8_t> block(static_cast<size_t>(std::min<int64_t>(bytes, 1 << 20)));
  uint64_t state = 88172645463325252u;
  for (uint8_t& byte : block) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<uint8_t>(state & 0x3fu);  // small exponents: finite as fp16
  }
  Buffer buffer = Allocate(bytes);
  for (int64_t at = 0; at < bytes; at += std::ssize(block)) {
    gpu_->CopyToDevice(buffer.as<uint8_t>() + at, block.data(),
                       std::min<int64_t>(std::ssize(block), bytes - at));
  }
  return buffer;
}

void GpuBench::MeasureCeilings() {
  const int64_t floats = int64_t{1} << 28;
  const Buffer from = Random(floats * 4), to = Allocate(floats * 4);
  const double copy = timer_->Seconds(1, [&] {
    if (!owner_->Issuing()) return;
    kernels::cuda::LaunchRankSum(owner_->stream(),
                                 {.gathered = from.as<float>(),
                                  .row_stride = floats / 1024,
                                  .out = {to.as<float>(), 1024, floats / 1024, floats / 1024}});
  });
  ceilings_.bytes = 2.0 * static_cast<double>(floats) * 4 / copy;
  const Buffer sink = Allocate(4);
  const kernels::cuda::PeakLaunch peak = {
      .blocks = 2048, .rounds = 4096, .sink = sink.as<int32_t>()};
  ceilings_.int8 = 2.0 * static_cast<double>(Int8PeakOperations(peak)) / timer_->Seconds(1, [&] {
    if (owner_->Issuing()) LaunchInt8Peak(owner_->stream(), peak);
  });
  ceilings_.half = 2.0 * static_cast<double>(HalfPeakOperations(peak)) / timer_->Seconds(1, [&] {
    if (owner_->Issuing()) LaunchHalfPeak(owner_->stream(), peak);
  });
  std::printf(
      "{\"what\": \"ceilings\", \"copy_gbs\": %.1f, \"mma_int8_tops\": %.1f, "
      "\"mma_fp16_tflops\": %.1f}\n",
      ceilings_.bytes * 1e-9, ceilings_.int8 * 1e-12, ceilings_.half * 1e-12);
}

// Uninitialized int8 rows would be zeros; these are codes, with scales.
struct Rows {
  Buffer q, scale, row_sum;
  Activation view;
};
Rows MakeRows(Backend& gpu, Buffer codes, int64_t rows, int64_t cols) {
  Rows made{std::move(codes),
            OrDie(gpu.Allocate(rows * 4, "bench")),
            OrDie(gpu.Allocate(rows * 4, "bench")),
            {}};
  const std::vector<float> scales(static_cast<size_t>(rows), 0.01f);
  gpu.CopyToDevice(made.scale.data(), scales.data(), rows * 4);
  made.view = {.rows = rows,
               .cols = cols,
               .q = made.q.as<int8_t>(),
               .q_stride = kernels::PaddedColumns(0, cols),
               .scale = made.scale.as<float>(),
               .row_sum = made.row_sum.as<int32_t>()};
  return made;
}

const char* FormatName(WeightFormat format) {
  return format == WeightFormat::kW4Group128 ? "w4_group" : "w4_channel";
}

// Random codes; scales that keep every value in int8.
std::unique_ptr<kernels::PackedLinear> MakeLinear(Backend& gpu, WeightFormat format, int64_t n,
                                                  int64_t k) {
  kernels::LinearWeight weight{.format = format, .n = n, .k = k};
  weight.codes.resize(static_cast<size_t>(n * k));
  uint32_t state = 1;
  for (uint8_t& code : weight.codes) {
    state = state * 1664525u + 1013904223u;
    code = static_cast<uint8_t>(format == WeightFormat::kW8 ? state >> 25 : state >> 28);
  }
  weight.scale.assign(static_cast<size_t>(n), 0.0009765625f);
  if (format == WeightFormat::kW4PerChannel)
    weight.scaled_zero.assign(static_cast<size_t>(n), 0.0078125f);
  if (format == WeightFormat::kW4Group128) {
    weight.group_scale.assign(static_cast<size_t>(n * weight.groups()), 8);
    weight.group_offset.assign(static_cast<size_t>(n * weight.groups()), -64);
  }
  return OrDie(gpu.Pack(weight));
}

void GpuBench::Linears(const GpuShape& shape) {
  struct Layer {
    const char* name;
    int64_t n, k;
  };
  const Layer layers[] = {{"qkv", shape.qkv(), shape.hidden},
                          {"o", shape.hidden, shape.attention()},
                          {"gate_up", 2 * shape.intermediate, shape.hidden},
                          {"down", shape.hidden, shape.intermediate}};
  for (const WeightFormat format : {WeightFormat::kW4Group128, WeightFormat::kW4PerChannel}) {
    for (const Layer& layer : layers) {
      const int copies = static_cast<int>(kBeyondCache / (layer.n * layer.k / 2)) + 2;
      std::vector<std::unique_ptr<kernels::PackedLinear>> weights;
      for (int i = 0; i < copies; ++i)
        weights.push_back(MakeLinear(*gpu_, format, layer.n, layer.k));
      for (const int64_t m : {1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096}) {
        const Rows x = MakeRows(*gpu_, Random(m * kernels::PaddedColumns(0, layer.k)), m, layer.k);
        const Buffer out = Allocate(m * layer.n * 2);
        const double seconds = timer_->Seconds(copies, [&] {
          for (const auto& weight : weights) {
            kernels::ops::Linear(*gpu_,
                                 {.weight = weight.get(),
                                  .x = x.view,
                                  .out = {out.data(), FloatType::kF16, m, layer.n, layer.n}});
          }
        });
        const double bytes =
            static_cast<double>(weights.front()->bytes + m * layer.k + 2 * m * layer.n);
        const double operations = 2.0 * static_cast<double>(m * layer.n * layer.k);
        std::printf(
            "{\"what\": \"linear\", \"model\": \"%s\", \"layer\": \"%s\", \"format\": \"%s\", "
            "\"m\": %lld, \"n\": %lld, \"k\": %lld, \"us\": %.2f, \"memory_percent\": %.1f, "
            "\"tensor_percent\": %.1f}\n",
            shape.name, layer.name, FormatName(format), static_cast<long long>(m),
            static_cast<long long>(layer.n), static_cast<long long>(layer.k), seconds * 1e6,
            100 * bytes / seconds / ceilings_.bytes, 100 * operations / seconds / ceilings_.int8);
        std::fflush(stdout);
      }
    }
  }
}

// Sequences of equal length in a paged cache of `layers` layers.
class Cache {
 public:
  Cache(Backend& gpu, const GpuShape& shape, int layers, int64_t sequences, int64_t positions)
      : kv_{kernels::KvFormat::kInt4, shape.kv_heads, shape.head_dim},
        pages_per_sequence_((positions + kernels::kKvPageTokens - 1) / kernels::kKvPageTokens) {
    const int64_t pages = sequences * pages_per_sequence_;
    memory_ = OrDie(gpu.Allocate(layers * pages * KvPageBytes(kv_), "kv"));
    layer_bytes_ = pages * KvPageBytes(kv_);
    for (int64_t p = 0; p < pages; ++p) table_.push_back(static_cast<int32_t>(p));
  }
  kernels::KvLayer layer(int i) const {
    return {memory_.as<uint8_t>() + i * layer_bytes_, KvPageBytes(kv_)};
  }
  const kernels::KvShape& kv() const { return kv_; }
  // `rows` rows of each of `count` sequences at `position`.
  std::vector<kernels::SequenceSpan> Spans(int64_t count, int64_t position, int64_t rows) const {
    std::vector<kernels::SequenceSpan> spans;
    for (int64_t s = 0; s < count; ++s) {
      spans.push_back({s * rows, rows, position,
                       std::span(table_).subspan(static_cast<size_t>(s * pages_per_sequence_),
                                                 static_cast<size_t>(pages_per_sequence_))});
    }
    return spans;
  }

 private:
  kernels::KvShape kv_;
  int64_t pages_per_sequence_;
  int64_t layer_bytes_ = 0;
  Buffer memory_;
  std::vector<int32_t> table_;
};

void GpuBench::AttentionTable(const GpuShape& shape) {
  for (const int64_t batch : {1, 16, 64, 256}) {
    for (const int64_t context : {256, 1024, 4096, 16384}) {
      const int64_t bytes = batch * context * 2 * shape.kv_heads * (shape.head_dim / 2 + 4);
      const int layers = static_cast<int>(kBeyondCache / bytes) + 2;
      if (layers * bytes > gpu_->AvailableMemory() / 2) continue;
      const Cache cache(*gpu_, shape, layers, batch, context);
      const Buffer q = Random(batch * shape.qkv() * 2);
      const Rows out =
          MakeRows(*gpu_, Allocate(batch * kernels::PaddedColumns(0, shape.attention())), batch,
                   shape.attention());
      const auto spans = cache.Spans(batch, context - 1, 1);
      const double seconds = timer_->Seconds(layers, [&] {
        for (int i = 0; i < layers; ++i) {
          kernels::ops::Attention(
              *gpu_, {.q = {q.data(), FloatType::kF16, batch, shape.attention(), shape.qkv()},
                      .heads = shape.heads,
                      .kv = cache.kv(),
                      .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                      .sequences = spans,
                      .layer = cache.layer(i),
                      .out = out.view});
        }
      });
      std::printf(
          "{\"what\": \"attention\", \"model\": \"%s\", \"batch\": %lld, \"context\": %lld, "
          "\"us\": %.2f, \"memory_percent\": %.1f}\n",
          shape.name, static_cast<long long>(batch), static_cast<long long>(context), seconds * 1e6,
          100 * static_cast<double>(bytes) / seconds / ceilings_.bytes);
      std::fflush(stdout);
    }
  }
}

// A model whose layers share two sets of weights, taken in turn: more than the cache holds, and
// little enough to be made in seconds.
class Model {
 public:
  Model(Backend& gpu, const GpuShape& shape, int64_t rows)
      : gpu_(gpu),
        shape_(shape),
        residual_(OrDie(gpu.Allocate(rows * shape.hidden * 2, "bench"))),
        wide_(
            OrDie(gpu.Allocate(rows * std::max(shape.qkv(), 2 * shape.intermediate) * 2, "bench"))),
        delta_(OrDie(gpu.Allocate(rows * shape.hidden * 2, "bench"))),
        gain_(OrDie(gpu.Allocate(shape.hidden * 4, "bench"))),
        table_(OrDie(gpu.Allocate(int64_t{1} << 24, "bench"))),
        input_(MakeRows(gpu, OrDie(gpu.Allocate(rows * shape.intermediate, "bench")), rows,
                        shape.intermediate)) {
    for (auto& layer : layers_) {
      constexpr WeightFormat kFormat = WeightFormat::kW4Group128;
      layer[0] = MakeLinear(gpu, kFormat, shape.qkv(), shape.hidden);
      layer[1] = MakeLinear(gpu, kFormat, shape.hidden, shape.attention());
      layer[2] = MakeLinear(gpu, kFormat, 2 * shape.intermediate, shape.hidden);
      layer[3] = MakeLinear(gpu, kFormat, shape.hidden, shape.intermediate);
    }
    head_ = MakeLinear(gpu, WeightFormat::kW8, shape.vocabulary, shape.hidden);
    logits_ = OrDie(gpu.Allocate(std::min<int64_t>(rows, 256) * shape.vocabulary * 4, "bench"));
  }

  // All layers over `rows` rows, and the head over `sampled` of them.
  void Step(const Cache& cache, const std::vector<kernels::SequenceSpan>& spans, int64_t rows,
            int64_t sampled) {
    for (int i = 0; i < shape_.layers; ++i) {
      const auto& layer = layers_[static_cast<size_t>(i % 2)];
      Norm(rows);
      const FloatMatrix qkv = Half(wide_, rows, shape_.qkv());
      Linear(*layer[0], Input(rows, shape_.hidden), qkv);
      kernels::ops::RopeAppend(gpu_, {.qkv = qkv,
                                      .heads = shape_.heads,
                                      .kv = cache.kv(),
                                      .cos_sin = table_.as<float>(),
                                      .sequences = spans,
                                      .layer = cache.layer(i)});
      kernels::ops::Attention(gpu_, {.q = kernels::Columns(qkv, 0, shape_.attention()),
                                     .heads = shape_.heads,
                                     .kv = cache.kv(),
                                     .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
                                     .sequences = spans,
                                     .layer = cache.layer(i),
                                     .out = Input(rows, shape_.attention())});
      Linear(*layer[1], Input(rows, shape_.attention()), Half(delta_, rows, shape_.hidden));
      Norm(rows);
      Linear(*layer[2], Input(rows, shape_.hidden), Half(wide_, rows, 2 * shape_.intermediate));
      kernels::ops::SiluMul(gpu_, {.gate_up = Half(wide_, rows, 2 * shape_.intermediate),
                                   .out = Input(rows, shape_.intermediate)});
      Linear(*layer[3], Input(rows, shape_.intermediate), Half(delta_, rows, shape_.hidden));
    }
    if (sampled == 0) return;
    Norm(rows);
    Linear(*head_, Input(sampled, shape_.hidden),
           {logits_.as<float>(), sampled, shape_.vocabulary, shape_.vocabulary});
  }

 private:
  FloatMatrix Half(const Buffer& memory, int64_t rows, int64_t cols) const {
    return {memory.data(), FloatType::kF16, rows, cols, cols};
  }
  Activation Input(int64_t rows, int64_t cols) const {
    Activation view = input_.view;
    view.rows = rows;
    view.cols = cols;
    view.q_stride = kernels::PaddedColumns(0, cols);
    return view;
  }
  void Norm(int64_t rows) {
    kernels::ops::Norm(gpu_, {.residual = Half(residual_, rows, shape_.hidden),
                              .delta = Half(delta_, rows, shape_.hidden),
                              .gain = gain_.as<float>(),
                              .epsilon = 1e-5f,
                              .out = Input(rows, shape_.hidden)});
  }
  void Linear(const kernels::PackedLinear& weight, const Activation& x, const FloatMatrix& out) {
    kernels::ops::Linear(gpu_, {.weight = &weight, .x = x, .out = out});
  }

  Backend& gpu_;
  const GpuShape& shape_;
  Buffer residual_, wide_, delta_, gain_, table_;
  Rows input_;
  std::unique_ptr<kernels::PackedLinear> layers_[2][4], head_;
  Buffer logits_;
};

void GpuBench::Steps(const GpuShape& shape) {
  constexpr int64_t kPrompt = 1024, kOutput = 512, kChunk = 2048;
  Model model(*gpu_, shape, kChunk);
  // What the weights of all layers would take, beside the two that are there.
  const int64_t weights = shape.layer_weights() * (shape.layers - 2) * 17 / 32;
  const int64_t per_token = shape.layers * 2LL * shape.kv_heads * (shape.head_dim / 2 + 4);
  const int64_t room = (gpu_->AvailableMemory() - weights) * 9 / 10;
  const int64_t batch = std::min<int64_t>(256, room / (per_token * (kPrompt + kOutput)));
  if (batch < 1) {
    std::printf("{\"what\": \"step\", \"model\": \"%s\", \"fits\": false}\n", shape.name);
    return;
  }
  const Cache cache(*gpu_, shape, shape.layers, batch, kPrompt + kOutput);
  const auto prompts = cache.Spans(std::min<int64_t>(2, batch), 0, kPrompt);
  const int64_t prefill_rows = std::ssize(prompts) * kPrompt;
  const double prefill = timer_->Seconds(1, [&] { model.Step(cache, prompts, prefill_rows, 0); });
  std::printf(
      "{\"what\": \"prefill\", \"model\": \"%s\", \"tokens\": %lld, \"ms\": %.3f, "
      "\"tensor_percent\": %.1f}\n",
      shape.name, static_cast<long long>(prefill_rows), prefill * 1e3,
      200.0 * static_cast<double>(shape.layer_weights()) * shape.layers *
          static_cast<double>(prefill_rows) / prefill / ceilings_.int8);
  double middle = 0;
  for (int64_t rows = 1; rows <= batch;
       rows = rows < batch ? std::min(rows * 4, batch) : batch + 1) {
    for (const int64_t context : {kPrompt, kPrompt + kOutput / 2, kPrompt + kOutput}) {
      const auto spans = cache.Spans(rows, context - 1, 1);
      const double step = timer_->Seconds(1, [&] { model.Step(cache, spans, rows, rows); });
      if (rows == batch && context == kPrompt + kOutput / 2) middle = step;
      const double bytes = static_cast<double>(shape.layer_weights()) * shape.layers * 17 / 32 +
                           static_cast<double>(shape.vocabulary * shape.hidden) +
                           static_cast<double>(rows * context * per_token);
      std::printf(
          "{\"what\": \"decode\", \"model\": \"%s\", \"batch\": %lld, \"context\": %lld, "
          "\"ms\": %.3f, \"tokens_per_second\": %.0f, \"memory_percent\": %.1f}\n",
          shape.name, static_cast<long long>(rows), static_cast<long long>(context), step * 1e3,
          static_cast<double>(rows) / step, 100 * bytes / step / ceilings_.bytes);
      std::fflush(stdout);
    }
  }
  // Steps grow linearly with the context: the middle one stands for all. Sampling and the host's
  // part are not in it.
  const double total =
      prefill * static_cast<double>(batch) / static_cast<double>(prompts.size()) + middle * kOutput;
  std::printf(
      "{\"what\": \"offline\", \"model\": \"%s\", \"batch\": %lld, \"prompt\": %lld, \"output\": "
      "%lld, \"tokens_per_second\": %.0f, \"from\": \"measured steps\"}\n",
      shape.name, static_cast<long long>(batch), static_cast<long long>(kPrompt),
      static_cast<long long>(kOutput), static_cast<double>(batch * kOutput) / total);
}

}  // namespace
}  // namespace qserve::bench

// Arguments: the parts wanted (linears, attention, steps); none: all.
int main(int argc, char** argv) {
  auto gpu = qserve::kernels::CreateBackend({.device = "cuda"});
  if (!gpu.ok()) {
    std::fprintf(stderr, "SKIPPED: %s\n", gpu.status().message().c_str());
    return 77;
  }
  qserve::bench::GpuBench(*std::move(gpu), std::set<std::string>(argv + 1, argv + argc)).Run();
  return 0;
}
