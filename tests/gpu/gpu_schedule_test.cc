// A row's bits on the GPU depend on the row alone: whatever the batch, the chunks of its prompt,
// whether a step is recorded or not, and how many ranks share the sum.
#include <array>
#include <thread>

#include "kernels/ops.h"
#include "kernels/quant/rope_table.h"
#include "tests/gpu/gpu_fixture.h"
#include "tests/ops/float_cases.h"
#include "tests/ops/linear_cases.h"
#include "worker/comm/host_staged_communicator.h"
#include "worker/comm/matrix_copy.h"
#include "worker/comm/thread_communicator.h"

namespace qserve::kernels::testing {
namespace {

class GpuSchedule : public GpuTest {};

TEST_F(GpuSchedule, ALinearsRowIsTheSameInEveryBatch) {
  const std::vector<int64_t> batches =
      SmallCasesOnly() ? std::vector<int64_t>{1, 18, 66}
                       : std::vector<int64_t>{1, 8, 16, 17, 64, 65, 256, 257, 2000};
  for (const WeightFormat format : {WeightFormat::kW4Group128, WeightFormat::kW4PerChannel,
                                    WeightFormat::kW8, WeightFormat::kHalfFixedOrder}) {
    const int64_t n = SmallCasesOnly() ? 64 : 4096, k = SmallCasesOnly() ? 256 : 4096;
    const LinearCase c = {.format = format, .n = n, .k = k, .m = batches.back()};
    const auto weight = gpu_->Pack(MakeWeight(c, 5));
    ASSERT_TRUE(weight.ok());
    const HostActivation x = MakeActivation(c, 7);
    const Buffer f32 = Upload(*gpu_, x.f32), q = Upload(*gpu_, x.q);
    const Buffer scale = Upload(*gpu_, x.scale), row_sum = Upload(*gpu_, x.row_sum);
    std::vector<float> alone;
    for (const int64_t m : batches) {
      Activation view = x.view;
      view.rows = m;
      if (view.f32 != nullptr) view.f32 = f32.as<float>();
      if (view.q != nullptr) {
        view.q = q.as<int8_t>();
        view.scale = scale.as<float>();
        view.row_sum = row_sum.as<int32_t>();
      }
      const Buffer out = Upload(*gpu_, std::vector<float>(static_cast<size_t>(m * n)));
      Do(*gpu_, [&] {
        ops::Linear(*gpu_, {.weight = weight->get(), .x = view, .out = {out.as<float>(), m, n, n}});
      });
      const std::vector<float> row = Download<float>(*gpu_, out, n);
      if (alone.empty()) alone = row;
      ASSERT_EQ(std::memcmp(row.data(), alone.data(), row.size() * sizeof(float)), 0)
          << FormatName(format) << " in a batch of " << m;
    }
  }
}

// Attention outputs of `count` rows of one sequence, computed in steps of the given sizes; every
// step also has a stranger's row.
std::vector<float> InChunks(Backend& backend, const AttentionCase& c,
                            const std::vector<int64_t>& chunks) {
  const KvWorld world(c, 1088);
  const int64_t page_bytes = KvPageBytes(world.kv());
  const Buffer memory =
      Upload(backend, std::vector<uint8_t>(static_cast<size_t>(8 * 17 * page_bytes), 0xff));
  const Buffer table = Upload(backend, *BuildRopeTable({.head_dim = c.head_dim}, 1088));
  std::vector<float> all;
  int64_t next = 0;
  for (const int64_t rows : chunks) {
    const KvWorld::Step step = world.MakeStep({{0, 1}, {next, rows}}, {1, 0});
    const DeviceFloats qkv = UploadFloats(backend, step.qkv, step.rows, world.row_width());
    DeviceActivation out(backend, step.rows, world.out_width());
    const Status status = backend.Run(0, [&] {
      ops::RopeAppend(backend, {.qkv = qkv.view,
                                .heads = c.heads,
                                .kv = world.kv(),
                                .cos_sin = table.as<float>(),
                                .sequences = step.spans,
                                .layer = {memory.data(), page_bytes}});
      ops::Attention(backend, {.q = Columns(qkv.view, 0, world.out_width()),
                               .heads = c.heads,
                               .kv = world.kv(),
                               .scale = world.scale(),
                               .sliding_window = c.window,
                               .sequences = step.spans,
                               .layer = {memory.data(), page_bytes},
                               .out = out.view});
    });
    EXPECT_TRUE(status.ok()) << status.message();
    const auto values = Download<float>(backend, out.f32, step.rows * world.out_width());
    all.insert(all.end(), values.begin() + world.out_width(), values.end());
    next += rows;
  }
  return all;
}

TEST_F(GpuSchedule, AttentionIsTheSameHoweverAPromptIsCut) {
  const int64_t window = SmallCasesOnly() ? 20 : 300;
  for (const int64_t sliding : {int64_t{0}, window}) {
    const AttentionCase c = {.heads = 8, .kv_heads = 2, .head_dim = 64, .window = sliding};
    const std::vector<std::vector<int64_t>> ways =
        SmallCasesOnly() ? std::vector<std::vector<int64_t>>{{70}, {65, 1, 4}}
                         : std::vector<std::vector<int64_t>>{
                               {600}, {64, 64, 472}, {255, 1, 1, 343}, {513, 87}, {1, 1, 1, 597}};
    const std::vector<float> whole = InChunks(*gpu_, c, ways.front());
    for (const auto& way : ways) {
      const std::vector<float> cut = InChunks(*gpu_, c, way);
      ASSERT_EQ(cut.size(), whole.size());
      EXPECT_EQ(std::memcmp(cut.data(), whole.data(), cut.size() * sizeof(float)), 0)
          << way.size() << " steps";
    }
  }
}

TEST_F(GpuSchedule, ARecordedStepGivesWhatAnEagerOneGives) {
  const int64_t rows = 4, cols = 256, n = 192;
  const auto weight = gpu_->Pack(
      MakeWeight({.format = WeightFormat::kW4Group128, .n = n, .k = cols, .m = rows}, 5));
  ASSERT_TRUE(weight.ok());
  const Buffer gain = Upload(*gpu_, RandomFloats(cols, 4));
  const DeviceFloats residual = UploadFloats(*gpu_, RandomFloats(rows * cols, 1), rows, cols);
  const DeviceFloats projected =
      UploadFloats(*gpu_, std::vector<float>(static_cast<size_t>(rows * n)), rows, n);
  const DeviceActivation normed(*gpu_, rows, cols), gated(*gpu_, rows, n / 2);
  const auto step = [&] {
    ops::Norm(*gpu_, {.residual = residual.view,
                      .gain = gain.as<float>(),
                      .epsilon = 1e-5f,
                      .out = normed.view});
    ops::Linear(*gpu_, {.weight = weight->get(), .x = normed.view, .out = projected.view});
    ops::SiluMul(*gpu_, {.gate_up = projected.view, .out = gated.view});
  };
  constexpr uint64_t kKey = 42;
  const Status recorded = gpu_->Record(kKey, step);
  ASSERT_TRUE(recorded.ok()) << recorded.message();
  for (uint64_t seed = 10; seed < 13; ++seed) {
    const DeviceFloats fresh = UploadFloats(*gpu_, RandomFloats(rows * cols, seed), rows, cols);
    const auto bits = Download<uint16_t>(*gpu_, fresh.memory, rows * cols);
    std::array<std::vector<float>, 2> results;
    for (const uint64_t key : {uint64_t{0}, kKey}) {
      gpu_->CopyToDevice(residual.memory.data(), bits.data(), rows * cols * 2);
      const Status ran = gpu_->Run(key, step);
      ASSERT_TRUE(ran.ok()) << ran.message();
      results[key == 0 ? 0 : 1] = Download<float>(*gpu_, gated.f32, rows * n / 2);
    }
    EXPECT_EQ(results[0], results[1]) << seed;
  }
}

// Ranks that share the GPU add by way of the host: the bits of the serial sum, on every rank.
TEST_F(GpuSchedule, RanksOnOneGpuAddInRankOrder) {
  for (const int size : {2, 4}) {
    const int64_t rows = 7, cols = 384, count = rows * cols;
    std::vector<std::vector<float>> partials;
    std::vector<const float*> inputs;
    for (int r = 0; r < size; ++r) {
      partials.push_back(RandomFloats(count, 50 + static_cast<uint64_t>(r), 100.0f));
    }
    for (const auto& partial : partials) inputs.push_back(partial.data());
    std::vector<float> sum(static_cast<size_t>(count));
    worker::comm::SumInRankOrder(inputs.data(), size, count, sum.data());
    worker::comm::ThreadHub hub(size);
    std::vector<std::thread> ranks;
    for (int r = 0; r < size; ++r) {
      ranks.emplace_back([&, r] {
        StatusOr<std::unique_ptr<Backend>> made = MakeGpu(FloatType::kF16);
        ASSERT_TRUE(made.ok()) << made.status().message();
        Backend& gpu = **made;
        worker::comm::HostStagedCommunicator communicator(
            &gpu, std::make_unique<worker::comm::ThreadCommunicator>(&hub, r, &gpu));
        const Buffer partial = Upload(gpu, partials[static_cast<size_t>(r)]);
        const DeviceFloats out = UploadFloats(gpu, std::vector<float>(sum.size()), rows, cols);
        communicator.AllReduceSum({partial.as<const float>(), rows, cols, cols}, out.view);
        const std::vector<float> got = DownloadFloats(gpu, out);
        for (size_t i = 0; i < got.size(); ++i) {
          ASSERT_EQ(got[i], RoundTo(FloatType::kF16, sum[i])) << "rank " << r << " at " << i;
        }
      });
    }
    for (std::thread& rank : ranks) rank.join();
  }
}

}  // namespace
}  // namespace qserve::kernels::testing
