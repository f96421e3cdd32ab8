// Logits of every supported family against transformers (tests/golden/models): fp32 weights, fp32
// keys and values. Whole prompts, chunks, decodes and tensor-parallel groups must all agree with
// it.
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/model_fixture.h"
#include "worker/comm/local_communicator.h"
#include "worker/comm/thread_communicator.h"
#include "worker/exec/direct_runner.h"

namespace qserve::tests {
namespace {

using nlohmann::json;
using worker::checkpoint::Checkpoint;
using worker::exec::DirectRunner;
using worker::exec::DirectRunnerOptions;

constexpr double kTolerance = 1e-4;
constexpr double kBf16Tolerance = 0.03;  // of linears in bf16, the head among them

constexpr const char* kModels[] = {
    "llama-2", "llama-3", "llama-3.1", "llama-3.2", "llama-bias",    "llama-linear",  "llama-yarn",
    "mistral", "yi",      "qwen-1.5",  "qwen-2.5",  "qwen-2-window", "qwen-2.5-yarn", "qwen-3"};

struct Golden {
  std::string path;  // what its files begin with
  std::vector<int32_t> prompt;
  std::vector<float> logits;
  int64_t vocabulary = 0;
};

Golden ReadGolden(const std::string& name) {
  Golden golden;
  golden.path = "tests/golden/models/" + name;
  golden.prompt = json::parse(ReadText(golden.path + ".prompt.json")).get<std::vector<int32_t>>();
  const std::string bytes = ReadText(golden.path + ".logits.bin");
  golden.logits.resize(bytes.size() / sizeof(float));
  std::memcpy(golden.logits.data(), bytes.data(), bytes.size());
  golden.vocabulary = std::ssize(golden.logits) / std::ssize(golden.prompt);
  return golden;
}

DirectRunnerOptions FullPrecision() {
  return {.max_tokens = 64,
          .kv_cache = worker::exec::KvCacheType::kFp32,
          .weights = {},
          .observer = nullptr};
}

std::unique_ptr<Checkpoint> WriteAndOpen(const TemporaryFolder& folder, const std::string& config) {
  static int count = 0;
  const std::string path = folder.Sub("model" + std::to_string(count++));
  const absl::Status written = fakes::WriteRandomModel(path, config, {});
  QSERVE_CHECK_MSG(written.ok(), written.ToString());
  auto checkpoint = Checkpoint::Open(path);
  QSERVE_CHECK_MSG(checkpoint.ok(), checkpoint.status().ToString());
  return *std::move(checkpoint);
}

std::vector<float> LogitsOf(const Checkpoint& checkpoint, const std::vector<int32_t>& prompt,
                            int64_t chunk = 0,
                            kernels::FloatType linear_type = kernels::FloatType::kF32) {
  auto made = kernels::CreateBackend({.device = "cpu", .threads = 1, .linear_type = linear_type});
  QSERVE_CHECK_MSG(made.ok(), made.status().message());
  const std::unique_ptr<kernels::Backend> backend = *std::move(made);
  worker::comm::LocalCommunicator alone(backend.get());
  auto runner = DirectRunner::Create(checkpoint, *backend, alone, FullPrecision());
  QSERVE_CHECK_MSG(runner.ok(), runner.status().ToString());
  auto logits = (*runner)->Logits(prompt, chunk);
  QSERVE_CHECK_MSG(logits.ok(), logits.status().ToString());
  return *std::move(logits);
}

// The largest over positions of ||a - b|| / ||b||.
double WorstError(const std::vector<float>& a, const std::vector<float>& b, int64_t vocabulary) {
  QSERVE_CHECK(a.size() == b.size());
  double worst = 0;
  for (size_t begin = 0; begin < a.size(); begin += static_cast<size_t>(vocabulary)) {
    double difference = 0, norm = 0;
    for (size_t i = begin; i < begin + static_cast<size_t>(vocabulary); ++i) {
      difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
      norm += double{b[i]} * b[i];
    }
    const double error = std::sqrt(difference / norm);
    worst = std::isnan(error) ? 1e9 : std::max(worst, error);
  }
  return worst;
}

class ModelGolden : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Families, ModelGolden, ::testing::ValuesIn(kModels), [](const auto& test) {
  std::string name = test.param;
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
});

TEST_P(ModelGolden, AgreesWithTransformersInChunksOfAnySize) {
  const Golden golden = ReadGolden(GetParam());
  const TemporaryFolder folder;
  const auto checkpoint = WriteAndOpen(folder, ReadText(golden.path + ".config.json"));
  const std::vector<float> whole = LogitsOf(*checkpoint, golden.prompt);
  EXPECT_LT(WorstError(whole, golden.logits, golden.vocabulary), kTolerance);
  for (const int64_t chunk : {1, 7}) {
    EXPECT_LT(
        WorstError(LogitsOf(*checkpoint, golden.prompt, chunk), golden.logits, golden.vocabulary),
        kTolerance)
        << "chunks of " << chunk;
  }
}

TEST_P(ModelGolden, LinearsInBf16AreNearTransformersAndTheSameInAnyChunks) {
  constexpr auto kBf16 = kernels::FloatType::kBf16;
  const Golden golden = ReadGolden(GetParam());
  const TemporaryFolder folder;
  const auto checkpoint = WriteAndOpen(folder, ReadText(golden.path + ".config.json"));
  const std::vector<float> whole = LogitsOf(*checkpoint, golden.prompt, 0, kBf16);
  const double error = WorstError(whole, golden.logits, golden.vocabulary);
  EXPECT_LT(error, kBf16Tolerance);
  EXPECT_GT(error, kTolerance) << "this is not bf16";
  EXPECT_EQ(LogitsOf(*checkpoint, golden.prompt, 7, kBf16), whole);
}

TEST_P(ModelGolden, ConfigurationOfTransformersFiveIsTheSameModel) {
  const Golden golden = ReadGolden(GetParam());
  const TemporaryFolder folder;
  const auto four = WriteAndOpen(folder, ReadText(golden.path + ".config.json"));
  const auto five = WriteAndOpen(folder, ReadText(golden.path + ".config.v5.json"));
  EXPECT_EQ(four->config().sliding_window, five->config().sliding_window);
  EXPECT_EQ(LogitsOf(*four, golden.prompt), LogitsOf(*five, golden.prompt));
}

TEST_P(ModelGolden, TensorParallelRanksAgreeWithTransformers) {
  const Golden golden = ReadGolden(GetParam());
  const TemporaryFolder folder;
  const auto checkpoint = WriteAndOpen(folder, ReadText(golden.path + ".config.json"));
  for (const int size : {2, 4}) {
    if (checkpoint->config().heads % size != 0) continue;
    worker::comm::ThreadHub hub(size);
    std::vector<float> logits;
    OnRanks(size, [&](int rank) {
      const auto backend = MakeCpu();
      worker::comm::ThreadCommunicator communicator(&hub, rank, backend.get());
      auto runner = DirectRunner::Create(*checkpoint, *backend, communicator, FullPrecision());
      ASSERT_TRUE(runner.ok()) << runner.status();
      auto mine = (*runner)->Logits(golden.prompt, 16);
      ASSERT_TRUE(mine.ok()) << mine.status();
      if (rank == 0) logits = *std::move(mine);
    });
    EXPECT_LT(WorstError(logits, golden.logits, golden.vocabulary), kTolerance) << size << " ranks";
  }
}

// The goldens are worth nothing if a model that ignored a feature passed as well.
TEST(ModelGoldenSensitivity, EveryFeatureMovesTheLogits) {
  const std::pair<const char*, json> changes[] = {
      {"mistral", {{"sliding_window", nullptr}}},
      {"qwen-2-window", {{"use_sliding_window", false}}},
      {"llama-3.1", {{"rope_scaling", nullptr}}},
      {"llama-linear", {{"rope_scaling", nullptr}}},
      {"llama-yarn", {{"rope_scaling", nullptr}}},
      {"llama-yarn", {{"rope_scaling", {{"rope_type", "linear"}, {"factor", 4.0}}}}},
      {"llama-3.1", {{"rope_theta", 10000.0}}},
      {"llama-2", {{"rms_norm_eps", 1e-2}}},
  };
  for (const auto& [name, change] : changes) {
    const Golden golden = ReadGolden(name);
    json config = json::parse(ReadText(golden.path + ".config.json"));
    for (const auto& [key, value] : change.items()) config[key] = value;
    const TemporaryFolder folder;
    const auto checkpoint = WriteAndOpen(folder, config.dump());
    EXPECT_GT(WorstError(LogitsOf(*checkpoint, golden.prompt), golden.logits, golden.vocabulary),
              10 * kTolerance)
        << name << " " << change;
  }
}

}  // namespace
}  // namespace qserve::tests
