// Every operation on the GPU against the CPU's reference, computed on the spot: integers and what
// follows from them by one formula to the bit, fp16 arithmetic within a stated tolerance.
#include <cmath>

#include "kernels/ops.h"
#include "kernels/quant/rope_table.h"
#include "tests/gpu/gpu_fixture.h"
#include "tests/ops/float_cases.h"
#include "tests/ops/linear_cases.h"

namespace qserve::kernels::testing {
namespace {

std::vector<float> Rounded(std::vector<float> values, FloatType type) {
  for (float& value : values) value = RoundTo(type, value);
  return values;
}

class GpuParity : public GpuTest {
 protected:
  FloatType type() const { return gpu_->info().activation_type; }
};

std::vector<float> Multiply(Backend& backend, const LinearCase& c) {
  const HostActivation x = MakeActivation(c, 7);
  const Buffer f32 = Upload(backend, x.f32), q = Upload(backend, x.q);
  const Buffer scale = Upload(backend, x.scale), row_sum = Upload(backend, x.row_sum);
  Activation view = x.view;
  if (view.f32 != nullptr) view.f32 = f32.as<float>();
  if (view.q != nullptr) {
    view.q = q.as<int8_t>();
    view.scale = scale.as<float>();
    view.row_sum = row_sum.as<int32_t>();
  }
  StatusOr<std::unique_ptr<PackedLinear>> weight = backend.Pack(MakeWeight(c, 5));
  EXPECT_TRUE(weight.ok()) << c.Name() << ": " << weight.status().message();
  if (!weight.ok()) return {};
  const Buffer out = Upload(backend, std::vector<float>(static_cast<size_t>(c.m * c.n), -1.0f));
  const Status status = backend.Run(0, [&] {
    ops::Linear(backend,
                {.weight = weight->get(), .x = view, .out = {out.as<float>(), c.m, c.n, c.n}});
  });
  EXPECT_TRUE(status.ok()) << c.Name() << ": " << status.message();
  return Download<float>(backend, out, c.m * c.n);
}

TEST_F(GpuParity, Linears) {
  std::vector<LinearCase> cases = LinearCases();
  // Whole layers of Llama-3-8B, decode to prefill.
  for (const int64_t m : {1, 16, 17, 64, 65, 256, 257, 1000}) {
    if (SmallCasesOnly()) break;
    for (const WeightFormat format :
         {WeightFormat::kW4Group128, WeightFormat::kW4PerChannel, WeightFormat::kW8}) {
      cases.push_back({.format = format, .n = 4096, .k = 4096, .m = m});
    }
  }
  size_t at = 0;
  for (const LinearCase& c : cases) {
    if (SmallCasesOnly() && (at++ % 23 != 0 || c.n * c.k * c.m > 2'000'000)) continue;
    const std::vector<float> expected = Multiply(*cpu_, c), got = Multiply(*gpu_, c);
    ASSERT_EQ(got.size(), expected.size());
    if (TakesInt8(c.format)) {
      ASSERT_TRUE(got.empty() ||
                  std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0)
          << c.Name();
      continue;
    }
    // fp16 products of inputs in [-1, 1] rounded to fp16: errors grow with the square root of k.
    const double tolerance = 2e-3 * std::sqrt(static_cast<double>(c.k));
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], expected[i], tolerance) << c.Name() << " at " << i;
    }
  }
}

TEST_F(GpuParity, LinearsInFullPrecision) {
  std::vector<LinearCase> cases = {
      {.format = WeightFormat::kFloat, .n = 130, .k = 257, .m = 9, .bias = true}};
  if (!SmallCasesOnly())
    cases.push_back({.format = WeightFormat::kFloat, .n = 4096, .k = 14336, .m = 257});
  for (const LinearCase& c : cases) {
    const std::vector<float> expected = Multiply(*cpu_, c), got = Multiply(*gpu_, c);
    ASSERT_EQ(got.size(), expected.size());
    // Two orders of sums of products within [-1, 1], in fp32.
    const double tolerance = 2e-6 * std::sqrt(static_cast<double>(c.k));
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], expected[i], tolerance) << c.Name() << " at " << i;
    }
  }
}

// Rows that were quantized after arithmetic in another order: codes may differ by one, no more.
void ExpectRowsNear(Backend& gpu, const DeviceActivation& got, Backend& cpu,
                    const DeviceActivation& expected, float tolerance) {
  const int64_t rows = got.view.rows, cols = got.view.cols, stride = got.view.q_stride;
  const auto got_f = Download<float>(gpu, got.f32, rows * cols);
  const auto want_f = Download<float>(cpu, expected.f32, rows * cols);
  const auto got_q = Download<int8_t>(gpu, got.q, rows * stride);
  const auto want_q = Download<int8_t>(cpu, expected.q, rows * stride);
  const auto got_scale = Download<float>(gpu, got.scale, rows);
  const auto want_scale = Download<float>(cpu, expected.scale, rows);
  const auto got_sum = Download<int32_t>(gpu, got.row_sum, rows);
  for (int64_t r = 0; r < rows; ++r) {
    const auto row = static_cast<size_t>(r);
    ASSERT_NEAR(got_scale[row], want_scale[row], tolerance * want_scale[row] * 127 + 1e-9f) << r;
    int32_t sum = 0;
    for (int64_t c = 0; c < cols; ++c) {
      const auto f = static_cast<size_t>(r * cols + c), q = static_cast<size_t>(r * stride + c);
      const float magnitude = std::max(want_scale[row] * 127, std::fabs(want_f[f]));
      ASSERT_NEAR(got_f[f], want_f[f], tolerance * magnitude) << r << ", " << c;
      ASSERT_LE(std::abs(got_q[q] - want_q[q]), 1 + static_cast<int>(tolerance * 127)) << r;
      sum += got_q[q];
    }
    ASSERT_EQ(got_sum[row], sum) << "the row's sum is exact";
  }
}

TEST_F(GpuParity, NormsAndGates) {
  const std::vector<int64_t> widths = SmallCasesOnly()
                                          ? std::vector<int64_t>{128, 200}
                                          : std::vector<int64_t>{128, 200, 2048, 4096, 8192, 14336};
  for (const int64_t cols : widths) {
    const int64_t rows = 5;
    const auto residual = Rounded(RandomFloats(rows * cols, 1), type());
    const auto delta = Rounded(RandomFloats(rows * cols, 2), type());
    const auto gate_up = Rounded(RandomFloats(rows * cols * 2, 3), type());
    const auto gain = RandomFloats(cols, 4);
    const auto run = [&](Backend& backend, DeviceActivation& normed, DeviceActivation& gated) {
      const DeviceFloats r = UploadFloats(backend, residual, rows, cols);
      const DeviceFloats d = UploadFloats(backend, delta, rows, cols);
      const DeviceFloats g = UploadFloats(backend, gate_up, rows, 2 * cols);
      const Buffer gains = Upload(backend, gain);
      Do(backend, [&] {
        ops::Norm(backend, {.residual = r.view,
                            .delta = d.view,
                            .gain = gains.as<float>(),
                            .epsilon = 1e-5f,
                            .out = normed.view});
        ops::SiluMul(backend, {.gate_up = g.view, .out = gated.view});
      });
      return DownloadFloats(backend, r);
    };
    DeviceActivation gpu_norm(*gpu_, rows, cols), gpu_gate(*gpu_, rows, cols);
    DeviceActivation cpu_norm(*cpu_, rows, cols), cpu_gate(*cpu_, rows, cols);
    const auto gpu_residual = run(*gpu_, gpu_norm, gpu_gate);
    const auto cpu_residual = run(*cpu_, cpu_norm, cpu_gate);
    for (size_t i = 0; i < gpu_residual.size(); ++i) {
      ASSERT_EQ(gpu_residual[i], RoundTo(type(), cpu_residual[i])) << cols << " at " << i;
    }
    // The residual is rounded to fp16 before it is normed; nothing else is.
    ExpectRowsNear(*gpu_, gpu_norm, *cpu_, cpu_norm, 2e-3f);
    ExpectRowsNear(*gpu_, gpu_gate, *cpu_, cpu_gate, 1e-4f);
  }
}

// Stores the histories of the case's sequences, then the step's rows, and attends with these.
std::vector<float> Attend(Backend& backend, const AttentionCase& c, FloatType rounded) {
  const int64_t positions = 1088;
  const KvWorld world(c, positions);
  const KvShape kv = world.kv();
  const int64_t pages = 8 * positions / kKvPageTokens;
  const int64_t page_bytes = KvPageBytes(kv);
  // 0xff: scales of what nobody wrote are NaN.
  const Buffer memory =
      Upload(backend, std::vector<uint8_t>(static_cast<size_t>(pages * page_bytes), 0xff));
  const KvLayer layer{memory.data(), page_bytes};
  const RopeSpec spec{.head_dim = c.head_dim};
  const Buffer table = Upload(backend, *BuildRopeTable(spec, positions));
  const Buffer q_gain = Upload(backend, RandomFloats(c.head_dim, 21));
  const Buffer k_gain = Upload(backend, RandomFloats(c.head_dim, 22));

  std::vector<SequenceShape> history;
  for (const SequenceShape& s : c.sequences) history.push_back({0, s.first_position});
  std::vector<float> result;
  for (const bool attends : {false, true}) {
    KvWorld::Step step = world.MakeStep(attends ? c.sequences : history);
    if (step.rows == 0) continue;
    std::erase_if(step.spans, [](const SequenceSpan& span) { return span.row_count == 0; });
    const DeviceFloats qkv =
        UploadFloats(backend, Rounded(step.qkv, rounded), step.rows, world.row_width());
    DeviceActivation out(backend, step.rows, world.out_width());
    const Status status = backend.Run(0, [&] {
      ops::RopeAppend(backend, {.qkv = qkv.view,
                                .heads = c.heads,
                                .kv = kv,
                                .cos_sin = table.as<float>(),
                                .q_gain = c.qk_norm ? q_gain.as<float>() : nullptr,
                                .k_gain = c.qk_norm ? k_gain.as<float>() : nullptr,
                                .qk_epsilon = 1e-6f,
                                .sequences = step.spans,
                                .layer = layer});
      if (!attends) return;
      ops::Attention(backend, {.q = Columns(qkv.view, 0, world.out_width()),
                               .heads = c.heads,
                               .kv = kv,
                               .scale = world.scale(),
                               .sliding_window = c.window,
                               .sequences = step.spans,
                               .layer = layer,
                               .out = out.view});
    });
    EXPECT_TRUE(status.ok()) << c.Name() << ": " << status.message();
    result = Download<float>(backend, out.f32, step.rows * world.out_width());
  }
  return result;
}

TEST_F(GpuParity, Attention) {
  int attempted = 0;
  for (const AttentionCase& c : AttentionCases()) {
    const bool supported = c.format != KvFormat::kF32 && c.head_dim >= 64;
    if (!supported) continue;
    if (GpuIsEmulated() && ++attempted != 2 && attempted != 5) continue;
    const std::vector<float> expected = Attend(*cpu_, c, type()), got = Attend(*gpu_, c, type());
    ASSERT_EQ(got.size(), expected.size());
    // Q and P in fp16; a code of K or V may round the other way after RoPE.
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], expected[i], 2e-2f) << c.Name() << " at " << i;
    }
  }
}

TEST_F(GpuParity, SampledIds) {
  const int64_t vocabulary = SmallCasesOnly() ? 500 : 128'256;
  const int64_t rows = SmallCasesOnly() ? 3 : 33;
  const std::vector<float> logits = RandomFloats(rows * vocabulary, 6, 3.0f);
  std::vector<SampleRow> sampling(static_cast<size_t>(rows));
  const std::vector<int32_t> output = {3, 3, 9};
  for (size_t r = 0; r < sampling.size(); ++r) {
    SampleRow& row = sampling[r];
    row.slot = static_cast<int32_t>(r);
    row.temperature = r % 3 == 0 ? 0.0f : 0.8f;
    row.top_k = r % 3 == 1 ? 20 : 0;
    row.top_p = r % 3 == 2 ? 0.9f : 1.0f;
    row.presence_penalty = r % 2 == 0 ? 0.5f : 0.0f;
    row.output_ids = output;
    row.seed = 77 + r;
    row.position = static_cast<uint32_t>(r);
    row.logprobs = r % 4 == 0 ? 3 : -1;
  }
  const auto draw = [&](Backend& backend) {
    const Buffer device = Upload(backend, logits);
    const Buffer ids = Upload(backend, std::vector<int32_t>(sampling.size(), -1));
    std::vector<SampledToken> results;
    Do(backend, [&] {
      ops::Sample(backend, {.logits = {device.as<const float>(), rows, vocabulary, vocabulary},
                            .vocab_size = static_cast<int32_t>(vocabulary - 7),
                            .rows = sampling,
                            .sampled_ids = ids.as<int32_t>(),
                            .results = &results});
    });
    const auto written = Download<int32_t>(backend, ids, rows);
    for (size_t r = 0; r < results.size(); ++r) EXPECT_EQ(results[r].id, written[r]);
    return results;
  };
  const auto expected = draw(*cpu_), got = draw(*gpu_);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t r = 0; r < got.size(); ++r) {
    EXPECT_EQ(got[r].id, expected[r].id) << "row " << r;
    EXPECT_NEAR(got[r].logprob, expected[r].logprob, 1e-3f) << "row " << r;
    EXPECT_EQ(got[r].top.size(), expected[r].top.size());
  }
}

}  // namespace
}  // namespace qserve::kernels::testing
