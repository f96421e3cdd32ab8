#include "bench/gpu_bench.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "bench/gpu_model.h"
#include "bench/gpu_operands.h"
#include "bench/gpu_report.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/peaks.h"
#include "kernels/cuda/rank_sum.h"
#include "kernels/ops.h"

namespace qserve::bench {
namespace {

using kernels::Backend;
using kernels::Buffer;
using kernels::FloatType;
using kernels::Status;
using kernels::StatusCode;
using kernels::StatusOr;
using kernels::WeightFormat;

struct Ceilings {
  double bytes = 0;  // a second, read and written
  double int8 = 0;   // operations a second, two a multiply-add
  double half = 0;
};

const char* FormatName(WeightFormat format) {
  return format == WeightFormat::kW4Group128 ? "w4_group" : "w4_channel";
}

double Percent(double work, double seconds, double ceiling) {
  return 100 * work / seconds / ceiling;
}

// `scale` units a second; `name` is the median's.
void AddTime(const Timing& timing, const char* name, double scale, JsonLine& line) {
  const std::string key = name;
  line.Number(key, timing.median * scale, 3)
      .Number(key + "_min", timing.min * scale, 3)
      .Number(key + "_max", timing.max * scale, 3)
      .Whole("runs", timing.runs);
}

class GpuBench {
 public:
  GpuBench(Backend& gpu, const GpuBenchOptions& options,
           const std::function<void(const std::string&)>& print)
      : gpu_(gpu),
        options_(options),
        print_(print),
        owner_(dynamic_cast<kernels::cuda::CudaStreamOwner*>(&gpu)),
        timer_(&gpu, options.timer) {}

  Status Run() {
    if (owner_ == nullptr) return {StatusCode::kUnsupported, "this device has no CUDA stream"};
    print_(JsonLine("gpu")
               .Text("name", gpu_.info().name)
               .Text("isa", gpu_.info().isa)
               .Whole("memory_bytes", gpu_.info().memory_bytes)
               .Finish());
    Status status = MeasureCeilings();
    for (const GpuShape& shape : options_.shapes) {
      if (status.ok() && Wanted("linears")) status = Linears(shape);
      if (status.ok() && Wanted("attention")) status = AttentionTable(shape);
      if (status.ok() && Wanted("steps")) status = Steps(shape);
    }
    return status;
  }

 private:
  bool Wanted(const char* part) const {
    return options_.parts.empty() || options_.parts.contains(part);
  }
  // The line as it is, or as absent; what harms the device ends the run.
  Status Print(JsonLine& line, const Status& status) {
    if (!status.ok()) line.Text("absent", status.message());
    print_(line.Finish());
    return status.code() == StatusCode::kDevice ? status : Status();
  }

  Status MeasureCeilings();
  StatusOr<double> Peak(int64_t multiply_adds, const std::function<void()>& launch);
  StatusOr<double> Copy();
  Status Linears(const GpuShape& shape);
  Status LinearTable(const GpuShape& shape, const char* name, WeightFormat format, int64_t n,
                     int64_t k);
  Status LinearRows(const std::vector<std::unique_ptr<kernels::PackedLinear>>& weights, int64_t m,
                    JsonLine& line);
  Status AttentionTable(const GpuShape& shape);
  Status AttentionPoint(const GpuShape& shape, int64_t batch, int64_t context, JsonLine& line);
  Status Steps(const GpuShape& shape);
  Status Prefill(const GpuShape& shape, GpuModel& model, const PagedCache& cache, int64_t batch,
                 double* seconds_a_prompt);
  Status Decode(const GpuShape& shape, GpuModel& model, const PagedCache& cache, int64_t batch,
                int64_t context, double* seconds);

  Backend& gpu_;
  const GpuBenchOptions& options_;
  const std::function<void(const std::string&)>& print_;
  kernels::cuda::CudaStreamOwner* const owner_;
  GpuTimer timer_;
  Ceilings ceilings_;
};

StatusOr<double> GpuBench::Copy() {
  const int64_t floats = options_.copy_floats, rows = 1024;
  const StatusOr<Buffer> from = RandomHalves(gpu_, 2 * floats);
  if (!from.ok()) return from.status();
  const StatusOr<Buffer> to = gpu_.Allocate(floats * 4, "bench");
  if (!to.ok()) return to.status();
  const StatusOr<Timing> timing = timer_.Measure(1, [&] {
    if (!owner_->Issuing()) return;
    const kernels::cuda::DeviceError error = kernels::cuda::LaunchRankSum(
        owner_->stream(), {.gathered = from->as<float>(),
                           .row_stride = floats / rows,
                           .out = {to->as<float>(), rows, floats / rows, floats / rows}});
    if (error != 0) owner_->Fail({StatusCode::kDevice, "the copy cannot be launched"});
  });
  if (!timing.ok()) return timing.status();
  return 2.0 * static_cast<double>(floats) * 4 / timing->median;
}

StatusOr<double> GpuBench::Peak(int64_t multiply_adds, const std::function<void()>& launch) {
  const StatusOr<Timing> timing = timer_.Measure(1, [&] {
    if (owner_->Issuing()) launch();
  });
  if (!timing.ok()) return timing.status();
  return 2.0 * static_cast<double>(multiply_adds) / timing->median;
}

// Without them nothing can be said, so that any failure ends the run.
Status GpuBench::MeasureCeilings() {
  const StatusOr<double> copy = Copy();
  if (!copy.ok()) return copy.status();
  const StatusOr<Buffer> sink = gpu_.Allocate(4, "bench");
  if (!sink.ok()) return sink.status();
  const kernels::cuda::PeakLaunch peak = {
      .blocks = options_.peak_blocks, .rounds = options_.peak_rounds, .sink = sink->as<int32_t>()};
  const auto check = [this](kernels::cuda::DeviceError error) {
    if (error != 0) owner_->Fail({StatusCode::kDevice, "a peak's kernel cannot be launched"});
  };
  const StatusOr<double> int8 =
      Peak(Int8PeakOperations(peak), [&] { check(LaunchInt8Peak(owner_->stream(), peak)); });
  if (!int8.ok()) return int8.status();
  const StatusOr<double> half =
      Peak(HalfPeakOperations(peak), [&] { check(LaunchHalfPeak(owner_->stream(), peak)); });
  if (!half.ok()) return half.status();
  ceilings_ = {*copy, *int8, *half};
  print_(JsonLine("ceilings")
             .Number("copy_gbs", ceilings_.bytes * 1e-9, 1)
             .Number("mma_int8_tops", ceilings_.int8 * 1e-12, 1)
             .Number("mma_fp16_tflops", ceilings_.half * 1e-12, 1)
             .Finish());
  return {};
}

Status GpuBench::Linears(const GpuShape& shape) {
  for (const WeightFormat format : {WeightFormat::kW4Group128, WeightFormat::kW4PerChannel}) {
    Status status = LinearTable(shape, "qkv", format, shape.qkv(), shape.hidden);
    if (status.ok()) status = LinearTable(shape, "o", format, shape.hidden, shape.attention());
    if (status.ok()) {
      status = LinearTable(shape, "gate_up", format, 2 * shape.intermediate, shape.hidden);
    }
    if (status.ok()) status = LinearTable(shape, "down", format, shape.hidden, shape.intermediate);
    if (!status.ok()) return status;
  }
  return {};
}

Status GpuBench::LinearTable(const GpuShape& shape, const char* name, WeightFormat format,
                             int64_t n, int64_t k) {
  const int64_t copies = options_.beyond_cache / (n * k / 2) + 2;
  std::vector<std::unique_ptr<kernels::PackedLinear>> weights;
  Status made;
  const kernels::LinearWeight weight = RandomWeight(format, n, k);
  while (made.ok() && std::ssize(weights) < copies) {
    auto packed = gpu_.Pack(weight);
    made = packed.status();
    if (made.ok()) weights.push_back(*std::move(packed));
  }
  for (const int64_t m : options_.linear_rows) {
    JsonLine line("linear");
    line.Text("model", shape.name).Text("layer", name).Text("format", FormatName(format));
    line.Whole("m", m).Whole("n", n).Whole("k", k);
    const Status status = Print(line, made.ok() ? LinearRows(weights, m, line) : made);
    if (!status.ok()) return status;
  }
  return {};
}

Status GpuBench::LinearRows(const std::vector<std::unique_ptr<kernels::PackedLinear>>& weights,
                            int64_t m, JsonLine& line) {
  const int64_t n = weights.front()->n, k = weights.front()->k;
  const StatusOr<GpuRows> x = RandomRows(gpu_, m, k);
  if (!x.ok()) return x.status();
  const StatusOr<Buffer> out = gpu_.Allocate(m * n * 2, "bench");
  if (!out.ok()) return out.status();
  const StatusOr<Timing> timing = timer_.Measure(static_cast<int>(weights.size()), [&] {
    for (const auto& weight : weights) {
      kernels::ops::Linear(
          gpu_,
          {.weight = weight.get(), .x = x->view, .out = {out->data(), FloatType::kF16, m, n, n}});
    }
  });
  if (!timing.ok()) return timing.status();
  const auto bytes = static_cast<double>(weights.front()->bytes + m * k + 2 * m * n);
  const double operations = 2.0 * static_cast<double>(m * n * k);
  AddTime(*timing, "us", 1e6, line);
  line.Number("memory_percent", Percent(bytes, timing->median, ceilings_.bytes), 1);
  line.Number("tensor_percent", Percent(operations, timing->median, ceilings_.int8), 1);
  return {};
}

Status GpuBench::AttentionTable(const GpuShape& shape) {
  for (const int64_t batch : options_.attention_batches) {
    for (const int64_t context : options_.attention_contexts) {
      JsonLine line("attention");
      line.Text("model", shape.name).Whole("batch", batch).Whole("context", context);
      const Status status = Print(line, AttentionPoint(shape, batch, context, line));
      if (!status.ok()) return status;
    }
  }
  return {};
}

Status GpuBench::AttentionPoint(const GpuShape& shape, int64_t batch, int64_t context,
                                JsonLine& line) {
  const int64_t bytes = batch * context * PagedCache::TokenBytes(shape);
  const int layers = static_cast<int>(options_.beyond_cache / bytes) + 2;
  auto cache = PagedCache::Create(gpu_, shape, layers, batch, context);
  if (!cache.ok()) return cache.status();
  if (Status status = (*cache)->Fill(); !status.ok()) return status;
  const StatusOr<Buffer> q = RandomHalves(gpu_, batch * shape.qkv());
  if (!q.ok()) return q.status();
  const StatusOr<GpuRows> out = RandomRows(gpu_, batch, shape.attention());
  if (!out.ok()) return out.status();
  const StatusOr<Buffer> qkv = RandomHalves(gpu_, batch * shape.qkv());
  if (!qkv.ok()) return qkv.status();
  const auto spans = (*cache)->Spans(batch, context - 1, 1);
  const auto attend = [&] {
    for (int i = 0; i < layers; ++i) {
      kernels::ops::Attention(
          gpu_, {.q = {q->data(), FloatType::kF16, batch, shape.attention(), shape.qkv()},
                 .heads = shape.heads,
                 .kv = (*cache)->kv(),
                 .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                 .sequences = spans,
                 .layer = (*cache)->layer(i),
                 .out = out->view});
    }
  };
  // A recorded step stores keys before it attends to them; once in each graph is little.
  const auto append = [&] {
    kernels::ops::RopeAppend(
        gpu_, {.qkv = {qkv->data(), FloatType::kF16, batch, shape.qkv(), shape.qkv()},
               .heads = shape.heads,
               .kv = (*cache)->kv(),
               .cos_sin = (*cache)->cos_sin(),
               .sequences = spans,
               .layer = (*cache)->layer(0)});
  };
  const StatusOr<Timing> timing = timer_.Measure(layers, attend, append);
  if (!timing.ok()) return timing.status();
  // Two products of a query with every key and value; padding is not counted.
  const double operations = 4.0 * static_cast<double>(batch * context * shape.attention());
  AddTime(*timing, "us", 1e6, line);
  line.Number("memory_percent",
              Percent(static_cast<double>(bytes), timing->median, ceilings_.bytes), 1);
  line.Number("tensor_percent", Percent(operations, timing->median, ceilings_.half), 1);
  return {};
}

Status GpuBench::Steps(const GpuShape& shape) {
  const int64_t positions = options_.prompt + options_.output;
  JsonLine absent("step");
  absent.Text("model", shape.name);
  auto model =
      GpuModel::Create(gpu_, shape, options_.prefill_rows, options_.most_sequences, positions);
  if (!model.ok()) return Print(absent, model.status());
  // What the weights of all layers would take, beside the two that are there.
  const int64_t weights = shape.layer_weights() * (shape.layers - 2) * 17 / 32;
  const int64_t a_sequence = shape.layers * PagedCache::TokenBytes(shape) * positions;
  const int64_t room = (gpu_.AvailableMemory() - weights) * 9 / 10;
  const int64_t batch = std::min(options_.most_sequences, room / a_sequence);
  if (batch < 1) {
    return Print(absent, {StatusCode::kOutOfMemory, "all layers and one sequence do not fit"});
  }
  auto cache = PagedCache::Create(gpu_, shape, shape.layers, batch, positions);
  if (!cache.ok()) return Print(absent, cache.status());
  if (Status filled = (*cache)->Fill(); !filled.ok()) return Print(absent, filled);
  double prompt = 0, middle = 0;
  Status status = Prefill(shape, **model, **cache, batch, &prompt);
  for (int64_t rows = 1; status.ok() && rows <= batch;
       rows = rows < batch ? std::min(rows * 4, batch) : batch + 1) {
    for (const int64_t context :
         {options_.prompt, options_.prompt + options_.output / 2, positions}) {
      double seconds = 0;
      if (status.ok()) status = Decode(shape, **model, **cache, rows, context, &seconds);
      if (rows == batch && context == options_.prompt + options_.output / 2) middle = seconds;
    }
  }
  if (!status.ok() || prompt == 0 || middle == 0) return status;
  // Steps grow linearly with the context: the middle one stands for all. gpu_offline measures.
  const double total =
      static_cast<double>(batch) * prompt + middle * static_cast<double>(options_.output);
  JsonLine line("offline_estimate");
  line.Text("from", "measured steps, without sampling, scheduler and host")
      .Text("model", shape.name)
      .Whole("batch", batch)
      .Whole("prompt", options_.prompt)
      .Whole("output", options_.output)
      .Number("tokens_per_second", static_cast<double>(batch * options_.output) / total, 0);
  return Print(line, {});
}

Status GpuBench::Prefill(const GpuShape& shape, GpuModel& model, const PagedCache& cache,
                         int64_t batch, double* seconds_a_prompt) {
  const int64_t prompts = std::clamp<int64_t>(options_.prefill_rows / options_.prompt, 1, batch);
  const auto spans = cache.Spans(prompts, 0, options_.prompt);
  const int64_t rows = prompts * options_.prompt;
  JsonLine line("prefill");
  line.Text("model", shape.name).Whole("tokens", rows);
  const StatusOr<Timing> timing =
      timer_.MeasureUnrecorded([&] { model.Step(cache, spans, rows, 0); });
  if (!timing.ok()) return Print(line, timing.status());
  *seconds_a_prompt = timing->median / static_cast<double>(prompts);
  AddTime(*timing, "ms", 1e3, line);
  const double operations =
      2.0 * static_cast<double>(shape.layer_weights()) * shape.layers * static_cast<double>(rows);
  line.Number("tokens_per_second", static_cast<double>(rows) / timing->median, 0);
  line.Number("tensor_percent", Percent(operations, timing->median, ceilings_.int8), 1);
  return Print(line, {});
}

Status GpuBench::Decode(const GpuShape& shape, GpuModel& model, const PagedCache& cache,
                        int64_t batch, int64_t context, double* seconds) {
  const auto spans = cache.Spans(batch, context - 1, 1);
  JsonLine line("decode");
  line.Text("model", shape.name).Whole("batch", batch).Whole("context", context);
  const StatusOr<Timing> timing =
      timer_.Measure(1, [&] { model.Step(cache, spans, batch, batch); });
  if (!timing.ok()) return Print(line, timing.status());
  *seconds = timing->median;
  const double weights = static_cast<double>(shape.layer_weights()) * shape.layers;
  const auto head = static_cast<double>(shape.vocabulary * shape.hidden);
  const double bytes =
      weights * 17 / 32 + head +
      static_cast<double>(batch * context * shape.layers * PagedCache::TokenBytes(shape));
  const double operations = 2.0 * (weights + head) * static_cast<double>(batch);
  AddTime(*timing, "ms", 1e3, line);
  line.Number("tokens_per_second", static_cast<double>(batch) / timing->median, 0);
  line.Number("memory_percent", Percent(bytes, timing->median, ceilings_.bytes), 1);
  line.Number("tensor_percent", Percent(operations, timing->median, ceilings_.int8), 1);
  return Print(line, {});
}

}  // namespace

Status RunGpuBench(Backend& gpu, const GpuBenchOptions& options,
                   const std::function<void(const std::string&)>& print) {
  return GpuBench(gpu, options, print).Run();
}

}  // namespace qserve::bench
