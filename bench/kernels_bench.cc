// Speed of the linears on the shapes of real models, as fractions of the memory bandwidth and of
// the integer peak that this machine shows in the same run. Weights are cycled through enough
// copies that none comes from a cache, as in a model.
//
//   kernels_bench [--isa NAME] [--threads N] [--model 1b|8b] [--shape SUBSTRING] [--m 1,8,32]
//   [--seconds PER_ROW]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "bench/machine_peaks.h"
#include "kernels/device_factory.h"

namespace qserve::bench {
namespace {

using kernels::WeightFormat;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string isa = "auto";
  std::string model = "1b";
  std::string shape;
  int threads = 0;
  double seconds = 0.15;
  std::vector<int64_t> batches = {1, 8, 32, 128, 512};
};

struct Shape {
  const char* name;
  int64_t n;
  int64_t k;
  WeightFormat format;
};

std::vector<Shape> ShapesOf(const std::string& model) {
  constexpr WeightFormat kGroup = WeightFormat::kW4Group128;
  constexpr WeightFormat kChannel = WeightFormat::kW4PerChannel;
  if (model == "8b") {
    return {
        {"qkv g128", 6144, 4096, kGroup},        {"o g128", 4096, 4096, kGroup},
        {"gate_up g128", 28672, 4096, kGroup},   {"down g128", 4096, 14336, kGroup},
        {"gate_up gchn", 28672, 4096, kChannel}, {"lm_head w8", 128256, 4096, WeightFormat::kW8}};
  }
  return {{"qkv g128", 3072, 2048, kGroup},
          {"o g128", 2048, 2048, kGroup},
          {"gate_up g128", 16384, 2048, kGroup},
          {"down g128", 2048, 8192, kGroup},
          {"gate_up gchn", 16384, 2048, kChannel},
          {"lm_head w8", 8192, 2048, WeightFormat::kW8},
          {"lm_head g128", 128256, 2048, kGroup},
          {"lm_head fp16", 4096, 2048, WeightFormat::kHalfFixedOrder}};
}

kernels::LinearWeight RandomWeight(const Shape& shape) {
  kernels::LinearWeight w;
  w.format = shape.format;
  w.n = shape.n;
  w.k = shape.k;
  uint32_t state = 1;
  const auto next = [&state] { return state = state * 1664525u + 1013904223u; };
  const auto rows = static_cast<size_t>(shape.n);
  if (!kernels::TakesInt8(shape.format)) {
    w.float_type = kernels::FloatType::kF16;
    w.floats.resize(rows * static_cast<size_t>(shape.k) * 2);
    for (size_t i = 0; i < w.floats.size(); ++i)
      w.floats[i] = static_cast<uint8_t>(i % 2 == 0 ? next() >> 24 : 0x2c);
    return w;
  }
  const uint32_t mask = shape.format == WeightFormat::kW8 ? 0x7f : 0x0f;
  w.codes.resize(rows * static_cast<size_t>(shape.k));
  for (uint8_t& code : w.codes) code = static_cast<uint8_t>(next() >> 24 & mask);
  w.scale.assign(rows, 0.01f);
  if (shape.format == WeightFormat::kW4PerChannel) w.scaled_zero.assign(rows, 0.08f);
  if (shape.format == WeightFormat::kW4Group128) {
    w.group_scale.assign(rows * static_cast<size_t>(w.groups()), 10);
    w.group_offset.assign(rows * static_cast<size_t>(w.groups()), -80);
  }
  return w;
}

// Activations of `rows` tokens, int8 and fp32.
struct Tokens {
  Tokens(int64_t rows, int64_t k)
      : q(static_cast<size_t>(rows * k), 3),
        f32(q.size(), 0.5f),
        scale(static_cast<size_t>(rows), 0.1f) {
    for (size_t i = 0; i < q.size(); ++i)
      q[i] = static_cast<int8_t>(static_cast<int>(i * 37 % 251) - 125);
    row_sum.assign(static_cast<size_t>(rows), 77);
    view = {.rows = rows,
            .cols = k,
            .f32 = f32.data(),
            .f32_stride = k,
            .q = q.data(),
            .q_stride = k,
            .lead = 0,
            .scale = scale.data(),
            .row_sum = row_sum.data()};
  }
  std::vector<int8_t> q;
  std::vector<float> f32;
  std::vector<float> scale;
  std::vector<int32_t> row_sum;
  kernels::Activation view;
};

struct Machine {
  double bandwidth = 0;  // GB/s
  double peak = 0;       // GOPS
};

void Measure(kernels::Backend& backend, const Shape& shape, const Options& options,
             const Machine& machine) {
  constexpr int64_t kBeyondCaches = int64_t{160} << 20;
  const kernels::LinearWeight weight = RandomWeight(shape);
  std::vector<std::unique_ptr<kernels::PackedLinear>> copies;
  for (int64_t bytes = 0; bytes < kBeyondCaches; bytes += copies.back()->bytes) {
    auto packed = backend.Pack(weight);
    if (!packed.ok()) {
      std::fprintf(stderr, "%s\n", packed.status().message().c_str());
      std::exit(1);
    }
    copies.push_back(*std::move(packed));
  }
  for (const int64_t m : options.batches) {
    const Tokens tokens(m, shape.k);
    std::vector<float> out(static_cast<size_t>(m * shape.n));
    double best = 1e30;
    size_t calls = 0;
    const auto begin = Clock::now();
    while (calls < 3 ||
           std::chrono::duration<double>(Clock::now() - begin).count() < options.seconds) {
      const auto start = Clock::now();
      backend.Linear({.weight = copies[calls++ % copies.size()].get(),
                      .x = tokens.view,
                      .out = {out.data(), m, shape.n, shape.n}});
      best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    }
    const double bytes = static_cast<double>(copies[0]->bytes);
    const double gops = 2e-9 * static_cast<double>(m * shape.n * shape.k) / best;
    const double gbs = bytes * 1e-9 / best;
    const bool integer = kernels::TakesInt8(shape.format) && machine.peak > 0;
    const double of_peak = integer ? 100 * gops / machine.peak : 0;
    std::printf("%-14s %7lld x %-6lld m %-4lld %9.3f ms %7.2f GB/s %5.1f %% %8.1f GOPS %5.1f %%\n",
                shape.name, static_cast<long long>(shape.n), static_cast<long long>(shape.k),
                static_cast<long long>(m), best * 1e3, gbs, 100 * gbs / machine.bandwidth, gops,
                of_peak);
    std::fflush(stdout);
  }
}

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const std::string value = argv[i + 1];
    if (flag == "--isa")
      options.isa = value;
    else if (flag == "--model")
      options.model = value;
    else if (flag == "--shape")
      options.shape = value;
    else if (flag == "--threads")
      options.threads = std::atoi(value.c_str());
    else if (flag == "--seconds")
      options.seconds = std::atof(value.c_str());
    else if (flag == "--m") {
      options.batches.clear();
      for (size_t at = 0; at < value.size();
           at = std::min(value.find(',', at), value.size() - 1) + 1) {
        options.batches.push_back(std::max(1, std::atoi(value.c_str() + at)));
      }
    } else {
      std::fprintf(stderr, "unknown flag %s\n", flag.c_str());
      std::exit(2);
    }
  }
  if (options.threads <= 0)
    options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  return options;
}

// Of memory like that of weights, huge pages included.
double MeasureBandwidth(kernels::Backend& backend, int threads) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  auto memory = backend.Allocate(kBytes, "bandwidth");
  if (!memory.ok()) return 0;
  std::memset(memory->data(), 1, kBytes);
  return ReadBandwidth(threads, memory->data(), kBytes, 5);
}

// Microseconds that a product takes which is as small as it can be and still shared by two threads:
// little more than handing out work and waiting for all, which every operation pays. The median,
// since a few are met by interruptions.
double MeasureBarrier(kernels::Backend& backend) {
  constexpr int kCalls = 20000;
  const Shape shape = {"", 32, 128, WeightFormat::kW4PerChannel};
  const auto weight = backend.Pack(RandomWeight(shape));
  if (!weight.ok()) return 0;
  const Tokens token(1, shape.k);
  std::vector<float> out(static_cast<size_t>(shape.n));
  std::vector<double> times;
  times.reserve(kCalls);
  for (int i = 0; i < kCalls; ++i) {
    const auto start = Clock::now();
    backend.Linear(
        {.weight = weight->get(), .x = token.view, .out = {out.data(), 1, shape.n, shape.n}});
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + kCalls / 2, times.end());
  return times[kCalls / 2];
}

int Main(int argc, char** argv) {
  const Options options = Parse(argc, argv);
  auto backend =
      kernels::CreateBackend({.device = "cpu", .threads = options.threads, .cpu_isa = options.isa});
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().message().c_str());
    return 1;
  }
  const std::string isa = (*backend)->info().isa;
  Machine machine;
  machine.bandwidth = MeasureBandwidth(**backend, options.threads);
  machine.peak = IntegerPeak(IntegerPeakLoop(isa), options.threads, 100);
  std::printf(
      "%s, %s: read bandwidth %.1f GB/s, integer peak %.0f GOPS, smallest shared product %.2f us\n",
      (*backend)->info().name.c_str(), isa.c_str(), machine.bandwidth, machine.peak,
      MeasureBarrier(**backend));
  for (const Shape& shape : ShapesOf(options.model)) {
    if (std::string(shape.name).find(options.shape) != std::string::npos)
      Measure(**backend, shape, options, machine);
  }
  return 0;
}

}  // namespace
}  // namespace qserve::bench

int main(int argc, char** argv) { return qserve::bench::Main(argc, argv); }
