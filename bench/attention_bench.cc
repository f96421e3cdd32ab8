// Speed of attention and of the smaller floating-point operations on the shapes of real models.
// Decode is given as a fraction of the memory bandwidth that this machine shows in the same run;
// prefill and sampling as work per second; all attention as a fraction of the peak of fp32
// multiply-adds, which is what it is made of, too. Caches of keys and values are cycled through
// enough layers that none comes from a processor cache, as in a model.
//
//   attention_bench [--isa NAME] [--threads N] [--seconds PER_ROW] [--only SUBSTRING]
//
// --only takes the rows whose beginning, blanks single ("8b int4 seqs 1 rows 1 context 1024"),
// contains the substring.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/float_peak.h"
#include "bench/machine_peaks.h"
#include "kernels/device_factory.h"

namespace qserve::bench {
namespace {

using kernels::KvFormat;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string isa = "auto";
  std::string only;
  int threads = 0;
  double seconds = 0.2;
};

struct Model {
  const char* name;
  int heads;
  int kv_heads;
  int head_dim;
};
constexpr Model kModels[] = {{"1b", 32, 8, 64}, {"8b", 32, 8, 128}, {"7b-mha", 32, 32, 128}};

// `sequences` sequences, each with `rows` rows that end at position `context`.
struct Load {
  int64_t sequences;
  int64_t rows;
  int64_t context;
};
constexpr Load kLoads[] = {{1, 1, 128},  {1, 1, 1024},  {1, 1, 4096},  {8, 1, 128},   {8, 1, 1024},
                           {8, 1, 4096}, {32, 1, 1024}, {1, 512, 512}, {1, 512, 4096}};

const char* FormatName(KvFormat format) {
  if (format == KvFormat::kInt4) return "int4";
  return format == KvFormat::kInt8 ? "int8" : "fp16";
}

std::string Label(const Model& model, KvFormat format, const Load& load) {
  return std::string(model.name) + " " + FormatName(format) + " seqs " +
         std::to_string(load.sequences) + " rows " + std::to_string(load.rows) + " context " +
         std::to_string(load.context);
}

// Of this machine, in this run.
struct Ceilings {
  double bandwidth;  // GB/s
  double gflops;     // 0: not known for this instruction set
};

class Cache {
 public:
  Cache(kernels::Backend& backend, const kernels::KvShape& shape, const Load& load) : load_(load) {
    constexpr int64_t kBeyondCaches = int64_t{200} << 20;
    const int64_t pages = (load.context + kernels::kKvPageTokens - 1) / kernels::kKvPageTokens;
    page_bytes_ = kernels::KvPageBytes(shape);
    const int64_t bytes = pages * load.sequences * page_bytes_;
    for (int64_t total = 0; total < kBeyondCaches; total += bytes) {
      auto buffer = backend.Allocate(bytes, "attention_bench");
      if (!buffer.ok()) std::exit(1);
      std::fill_n(buffer->as<uint8_t>(), bytes, uint8_t{0x29});  // codes, and scales of 0.04
      layers_.push_back(*std::move(buffer));
    }
    for (int64_t s = 0; s < load.sequences; ++s) {
      std::vector<int32_t>& table = tables_.emplace_back();
      for (int64_t p = 0; p < pages; ++p)
        table.push_back(static_cast<int32_t>(p * load.sequences + s));
    }
    for (int64_t s = 0; s < load.sequences; ++s) {
      spans_.push_back(
          {s * load.rows, load.rows, load.context - load.rows, tables_[static_cast<size_t>(s)]});
    }
  }
  kernels::KvLayer Next() { return {layers_[next_++ % layers_.size()].data(), page_bytes_}; }
  const std::vector<kernels::SequenceSpan>& spans() const { return spans_; }
  // Bytes of keys and values that one call must read.
  double BytesRead() const {
    const double per_token = static_cast<double>(page_bytes_) / kernels::kKvPageTokens;
    return per_token * static_cast<double>(load_.context * load_.sequences);
  }

 private:
  Load load_;
  int64_t page_bytes_ = 0;
  std::vector<kernels::Buffer> layers_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<kernels::SequenceSpan> spans_;
  size_t next_ = 0;
};

double BestSeconds(double seconds, const std::function<void()>& call) {
  double best = 1e30;
  const auto begin = Clock::now();
  for (int calls = 0;
       calls < 3 || std::chrono::duration<double>(Clock::now() - begin).count() < seconds;
       ++calls) {
    const auto start = Clock::now();
    call();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

void MeasureAttention(kernels::Backend& backend, const Model& model, KvFormat format,
                      const Load& load, const Ceilings& ceilings, const Options& options) {
  const kernels::KvShape shape{format, model.kv_heads, model.head_dim};
  const int64_t rows = load.rows * load.sequences, cols = int64_t{model.heads} * model.head_dim;
  Cache cache(backend, shape, load);
  std::vector<float> q(static_cast<size_t>(rows * cols), 0.01f), out(q.size());
  const double best = BestSeconds(options.seconds, [&] {
    backend.Attention({.q = {q.data(), rows, cols, cols},
                       .heads = model.heads,
                       .kv = shape,
                       .scale = 0.1f,
                       .sequences = cache.spans(),
                       .layer = cache.Next(),
                       .out = {.rows = rows, .cols = cols, .f32 = out.data(), .f32_stride = cols}});
  });
  const double seen = static_cast<double>(load.context) -
                      static_cast<double>(load.rows - 1) / 2;  // positions per row
  const double gflop = 4e-9 * static_cast<double>(rows * cols) * seen;
  const double gbs = cache.BytesRead() * 1e-9 / best;
  const double ceiling = ceilings.gflops > 0 ? 100 / ceilings.gflops : 0;
  std::printf("%-40s %9.3f ms %7.2f GB/s %5.1f %% %8.1f GFLOPS %5.1f %%\n",
              Label(model, format, load).c_str(), best * 1e3, gbs, 100 * gbs / ceilings.bandwidth,
              gflop / best, ceiling * gflop / best);
  std::fflush(stdout);
}

void MeasureRows(kernels::Backend& backend, int64_t rows, const Options& options) {
  constexpr int64_t kHidden = 4096, kInner = 14336;
  std::vector<float> x(static_cast<size_t>(rows * 2 * kInner), 0.5f), delta(x.size(), 0.1f),
      gain(kInner, 1.0f);
  auto codes = backend.Allocate(rows * kInner, "attention_bench");
  if (!codes.ok()) std::exit(1);
  std::vector<float> scale(static_cast<size_t>(rows));
  std::vector<int32_t> sum(scale.size());
  const auto out = [&](int64_t cols) {
    return kernels::Activation{.rows = rows,
                               .cols = cols,
                               .q = codes->as<int8_t>(),
                               .q_stride = cols,
                               .scale = scale.data(),
                               .row_sum = sum.data()};
  };
  const double norm = BestSeconds(options.seconds, [&] {
    backend.Norm({.residual = {x.data(), rows, kHidden, kHidden},
                  .delta = {delta.data(), rows, kHidden, kHidden},
                  .gain = gain.data(),
                  .epsilon = 1e-5f,
                  .out = out(kHidden)});
  });
  const double silu = BestSeconds(options.seconds, [&] {
    backend.SiluMul({.gate_up = {delta.data(), rows, 2 * kInner, 2 * kInner}, .out = out(kInner)});
  });
  std::printf("8b rows %-4lld add+norm+int8 %8.1f us   silu*up+int8 %8.1f us\n",
              static_cast<long long>(rows), norm * 1e6, silu * 1e6);
}

void MeasureSampling(kernels::Backend& backend, const Options& options) {
  constexpr int32_t kVocabulary = 128256;
  std::vector<float> logits(kVocabulary);
  uint32_t state = 1;
  for (float& x : logits)
    x = static_cast<float>((state = state * 1664525u + 1013904223u) >> 20) * 0.002f;
  const auto measure = [&](const char* name, const kernels::SampleRow& row) {
    std::vector<kernels::SampledToken> results;
    const double best = BestSeconds(options.seconds, [&] {
      backend.Sample({.logits = {logits.data(), 1, kVocabulary, kVocabulary},
                      .vocab_size = kVocabulary,
                      .rows = {&row, 1},
                      .results = &results});
    });
    std::printf("sample of 128256, %-24s %8.1f us\n", name, best * 1e6);
  };
  measure("greedy", {.temperature = 0});
  measure("temperature", {.temperature = 0.8f});
  measure("top_k 50", {.top_k = 50});
  measure("top_p 0.95, flat", {.top_p = 0.95f});
  measure("greedy, 20 logprobs", {.temperature = 0, .logprobs = 20});
}

// Of memory like that of the pages.
double MeasureBandwidth(kernels::Backend& backend, int threads) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  auto memory = backend.Allocate(kBytes, "attention_bench");
  if (!memory.ok()) return 0;
  std::fill_n(memory->as<uint8_t>(), kBytes, uint8_t{1});
  return ReadBandwidth(threads, memory->data(), kBytes, 5);
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--isa")
      options.isa = argv[i + 1];
    else if (flag == "--only")
      options.only = argv[i + 1];
    else if (flag == "--threads")
      options.threads = std::atoi(argv[i + 1]);
    else if (flag == "--seconds")
      options.seconds = std::atof(argv[i + 1]);
    else
      return std::fprintf(stderr, "unknown flag %s\n", argv[i]), 2;
  }
  if (options.threads <= 0)
    options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  auto backend =
      kernels::CreateBackend({.device = "cpu", .threads = options.threads, .cpu_isa = options.isa});
  if (!backend.ok()) return std::fprintf(stderr, "%s\n", backend.status().message().c_str()), 1;
  const std::string& isa = (*backend)->info().isa;
  const Ceilings ceilings{MeasureBandwidth(**backend, options.threads),
                          IntegerPeak(FloatPeakLoop(isa), options.threads, 20)};
  std::printf("%s, %s: read bandwidth %.1f GB/s, fp32 multiply-adds %.1f GFLOPS\n",
              (*backend)->info().name.c_str(), isa.c_str(), ceilings.bandwidth, ceilings.gflops);
  const auto wanted = [&](const std::string& name) {
    return name.find(options.only) != std::string::npos;
  };
  for (const Model& model : kModels) {
    for (const KvFormat format : {KvFormat::kInt4, KvFormat::kInt8, KvFormat::kF16}) {
      for (const Load& load : kLoads) {
        if (format != KvFormat::kInt4 && load.context != 1024) continue;
        if (wanted(Label(model, format, load)))
          MeasureAttention(**backend, model, format, load, ceilings, options);
      }
    }
  }
  if (wanted("rows")) {
    for (const int64_t rows : {1, 32, 512}) MeasureRows(**backend, rows, options);
  }
  if (wanted("sample")) MeasureSampling(**backend, options);
  return 0;
}

}  // namespace
}  // namespace qserve::bench

int main(int argc, char** argv) { return qserve::bench::Main(argc, argv); }
