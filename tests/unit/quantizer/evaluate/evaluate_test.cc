// Perplexity against a second computation of it, and simulated quantization against the kernels
// that serve it, on small random models and on the demo model.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/device_factory.h"
#include "kernels/quant/rtn.h"
#include "quantizer/evaluate/comparison.h"
#include "quantizer/evaluate/evaluation.h"
#include "quantizer/evaluate/text_tokens.h"
#include "tests/fakes/random_model.h"
#include "tests/unit/worker/checkpoint/testing.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
namespace exec = worker::exec;
using ::qserve::testing::ExpectError;
using ::qserve::testing::WriteTextFile;

constexpr const char* kSmallModel = R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 128,
  "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512})";
constexpr const char* kDemoModel = "deploy/demo-model";

class EvaluateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::Status status = fakes::WriteRandomModel(path(), kSmallModel, {});
    ASSERT_TRUE(status.ok()) << status;
    auto opened = ckpt::Checkpoint::Open(path());
    ASSERT_TRUE(opened.ok()) << opened.status();
    model_ = *std::move(opened);
  }

  std::string path() const { return directory_ / "model"; }

  std::unique_ptr<Trial> MakeTrial(const char* setting, TrialOptions options = {}) {
    options.max_tokens = 300;
    auto trial = Trial::Create(*model_, *ParseSetting(setting), options);
    EXPECT_TRUE(trial.ok()) << trial.status();
    return *std::move(trial);
  }

  std::vector<float> Logits(Trial& trial, std::span<const int32_t> tokens) {
    auto logits = trial.runner().Logits(tokens);
    EXPECT_TRUE(logits.ok()) << logits.status();
    return *std::move(logits);
  }

  ::qserve::testing::TemporaryDirectory directory_;
  std::unique_ptr<ckpt::Checkpoint> model_;
};

std::vector<int32_t> SomeTokens(int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back((i * i + 7 * i) % 256);
  return tokens;
}

double SignalToError(std::span<const float> reference, std::span<const float> values) {
  double signal = 0, error = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    signal += std::pow(reference[i], 2);
    error += std::pow(double{reference[i]} - values[i], 2);
  }
  return 10 * std::log10(signal / error);
}

TEST(Windows, OfTheirOwnLengthAreThePiecesOfTheText) {
  const std::vector<Window> windows = MakeWindows(1000, 300, 300);
  ASSERT_EQ(windows.size(), 3u);  // the rest of 100 is dropped
  for (size_t i = 0; i < windows.size(); ++i) {
    EXPECT_EQ(windows[i].begin, static_cast<int64_t>(i) * 300);
    EXPECT_EQ(windows[i].size, 300);
    EXPECT_EQ(windows[i].scored, 1);
  }
}

TEST(Windows, WithAShorterStrideScoreEachTokenOnce) {
  const std::vector<Window> windows = MakeWindows(1000, 300, 100);
  ASSERT_EQ(windows.size(), 8u);
  int64_t next = 1;
  for (const Window& window : windows) {
    EXPECT_EQ(window.begin + window.scored, next);
    next = window.begin + window.size;
  }
  EXPECT_EQ(next, 1000);
}

TEST(Windows, OfAShortTextAreOne) {
  const std::vector<Window> windows = MakeWindows(20, 300, 300);
  ASSERT_EQ(windows.size(), 1u);
  EXPECT_EQ(windows[0].size, 20);
}

TEST(Settings, AreReadFromTheirNames) {
  const auto setting = ParseSetting("w4a8kv16");
  ASSERT_TRUE(setting.ok());
  EXPECT_EQ(setting->weight_bits, 4);
  EXPECT_EQ(setting->activation_bits, 8);
  EXPECT_EQ(setting->kv_bits, 16);
  EXPECT_TRUE(ParseSetting("w16a16kv16")->full_precision());
  EXPECT_TRUE(ParseSetting("served")->served);
  EXPECT_EQ(ParseSettings("served,w8a8kv8")->size(), 2u);
  for (const char* name :
       {"", "w4", "w4a8", "w4a4kv4", "w2a8kv4", "w4a8kv4x", "served,", "W4a8kv4"})
    ExpectError(ParseSettings(name).status(), absl::StatusCode::kInvalidArgument, "is unknown");
}

TEST_F(EvaluateTest, SurpriseIsThatOfTheLogits) {
  const std::vector<int32_t> tokens = SomeTokens(600);
  const auto trial = MakeTrial("w16a16kv16");
  const std::vector<Window> windows = MakeWindows(600, 300, 200);
  const auto result =
      MeasurePerplexity(trial->runner(), trial->backend(), tokens, windows, {.chunk = 64});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->windows, 2);
  std::vector<double> expected;
  for (const Window& window : windows) {
    const auto part = std::span(tokens).subspan(static_cast<size_t>(window.begin), 300);
    const std::vector<float> logits = Logits(*trial, part);
    for (int64_t i = window.scored; i < window.size; ++i) {
      double sum = 0;
      for (int64_t id = 0; id < 256; ++id)
        sum += std::exp(double{logits[static_cast<size_t>((i - 1) * 256 + id)]});
      expected.push_back(std::log(sum) -
                         logits[static_cast<size_t>((i - 1) * 256 + part[static_cast<size_t>(i)])]);
    }
  }
  ASSERT_EQ(result->surprise.size(), expected.size());
  double mean = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(result->surprise[i], expected[i], 1e-5);
    mean += expected[i] / static_cast<double>(expected.size());
  }
  EXPECT_NEAR(result->perplexity(), std::exp(mean), 1e-3);
}

TEST(Divergence, IsThatOfTwoCoins) {
  // A fair coin from one that shows heads three times out of four: ln(4/3) / 2, and back
  // ln(27/16) / 4. Shifts of logits are none.
  const std::vector<float> fair = {7, 7}, biased = {std::log(3.0f), 0};
  EXPECT_NEAR(Divergence(fair, biased), std::log(4.0 / 3) / 2, 1e-7);
  EXPECT_NEAR(Divergence(biased, fair), std::log(27.0 / 16) / 4, 1e-7);
  EXPECT_EQ(Divergence(biased, biased), 0);
}

// Step by step beside the reference as from the logits of whole windows; from itself nothing.
TEST_F(EvaluateTest, DivergenceIsThatOfTheLogits) {
  const std::vector<int32_t> tokens = SomeTokens(500);
  const std::vector<Window> windows = MakeWindows(500, 300, 200);
  const auto full = MakeTrial("w16a16kv16"), again = MakeTrial("w16a16kv16"),
             rounded = MakeTrial("w16a8kv4");
  const auto measure = [&](Trial& trial) {
    auto result =
        MeasurePerplexity(trial.runner(), trial.backend(), tokens, windows,
                          {.chunk = 64,
                           .threads = 3,
                           .reference = {.runner = &full->runner(), .backend = &full->backend()}});
    EXPECT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->divergence.size(), result->surprise.size());
    return result->divergence;
  };
  EXPECT_EQ(measure(*again), std::vector<float>(299 + 200, 0.0f));
  const std::vector<float> divergence = measure(*rounded);
  size_t next = 0;
  for (const Window& window : windows) {
    const auto part = std::span(tokens).subspan(static_cast<size_t>(window.begin), 300);
    const std::vector<float> theirs = Logits(*full, part), own = Logits(*rounded, part);
    for (int64_t i = window.scored - 1; i < window.size - 1; ++i) {
      const auto row = [&](const std::vector<float>& logits) {
        return std::span(logits).subspan(static_cast<size_t>(i) * 256, 256);
      };
      const double expected = Divergence(row(theirs), row(own));
      EXPECT_GT(expected, 0);
      EXPECT_NEAR(divergence[next++], expected, 1e-5 + expected / 100);
    }
  }
  EXPECT_EQ(next, divergence.size());
}

// Of what is served: a simulation multiplies by a library, whose sums depend on the step's size.
TEST_F(EvaluateTest, StepsAndThreadsChangeNothing) {
  const std::vector<int32_t> tokens = SomeTokens(300);
  const std::vector<Window> windows = MakeWindows(300, 300, 300);
  const auto measure = [&](int64_t chunk, int threads) {
    const auto trial = MakeTrial("served", {.threads = threads,
                                            .lm_head = worker::model::LmHeadType::kFp16,
                                            .quantize = ckpt::LoadQuantization::kRtnGroup128});
    auto result = MeasurePerplexity(trial->runner(), trial->backend(), tokens, windows,
                                    {.chunk = chunk, .threads = threads});
    EXPECT_TRUE(result.ok()) << result.status();
    return result->surprise;
  };
  const std::vector<float> once = measure(300, 1);
  EXPECT_EQ(measure(32, 1), once);
  EXPECT_EQ(measure(300, 3), once);
}

// The same codes, once multiplied as integers and once read back into floating point.
TEST_F(EvaluateTest, SimulationIsWhatTheKernelsServe) {
  const std::vector<int32_t> tokens = SomeTokens(128);
  for (const auto quantize :
       {ckpt::LoadQuantization::kRtnGroup128, ckpt::LoadQuantization::kRtnPerChannel}) {
    TrialOptions options = {.kv_cache = exec::KvCacheType::kFp32,
                            .lm_head = worker::model::LmHeadType::kFp16,
                            .quantize = quantize};
    const std::vector<float> served = Logits(*MakeTrial("served", options), tokens);
    const std::vector<float> simulated = Logits(*MakeTrial("w4a8kv16", options), tokens);
    const std::vector<float> weights_only = Logits(*MakeTrial("w4a16kv16", options), tokens);
    EXPECT_GT(SignalToError(served, simulated), SignalToError(served, weights_only) + 10);
  }
}

TEST_F(EvaluateTest, EachPartOfASettingCostsItsOwn) {
  const std::vector<int32_t> tokens = SomeTokens(200);
  const TrialOptions options = {.quantize = ckpt::LoadQuantization::kRtnGroup128};
  const std::vector<float> full = Logits(*MakeTrial("w16a16kv16", options), tokens);
  const auto cost = [&](const char* setting) {
    return SignalToError(full, Logits(*MakeTrial(setting, options), tokens));
  };
  const double kv8 = cost("w16a16kv8"), kv4 = cost("w16a16kv4"), w8 = cost("w8a16kv16"),
               w4 = cost("w4a16kv16"), all = cost("w4a8kv4");
  EXPECT_GT(kv8, kv4 + 10);
  EXPECT_GT(w8, w4 + 10);
  EXPECT_GT(cost("w16a8kv16"), all);
  EXPECT_LT(all, w4);
  EXPECT_LT(all, kv4);
}

TEST_F(EvaluateTest, SmoothingDividesBeforeRoundingAndMultipliesAfter) {
  // One channel a hundred times as large as the others hides them, unless it is divided first.
  auto backend = kernels::CreateBackend({.device = "cpu", .threads = 1});
  ASSERT_TRUE(backend.ok());
  TappedBackend tap(**backend);
  kernels::LinearWeight weight;
  weight.n = 128, weight.k = 128;
  weight.floats.resize(128 * 128 * sizeof(float));
  for (size_t i = 0; i < 128; ++i)
    reinterpret_cast<float*>(weight.floats.data())[i * 129] = 1;  // identity
  worker::model::ModelWeights weights;
  weights.layers.resize(1);
  weights.layers[0].o = *tap.Pack(weight);
  tap.Know(weights);
  tap.RoundInputs();
  const auto error = [&] {
    std::vector<float> x(128), y(128);
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i) + 0.5f);
    x[3] *= 1000;
    const std::vector<float> before = x;
    tap.Linear({.weight = weights.layers[0].o.get(),
                .x = {.rows = 1, .cols = 128, .f32 = x.data(), .f32_stride = 128},
                .out = {y.data(), 1, 128, 128}});
    float largest = 0;
    for (size_t i = 0; i < x.size(); ++i)
      if (i != 3) largest = std::max(largest, std::abs(y[i] - before[i]));
    return largest;
  };
  EXPECT_GT(error(), 0.5f);
  std::vector<float> divisor(128, 1.0f);
  divisor[3] = 1000;
  tap.SmoothInputs({0, worker::model::LinearInput::kO}, divisor);
  EXPECT_LT(error(), 0.005f);
}

TEST_F(EvaluateTest, OtherWaysToQuantize) {
  const std::vector<int32_t> tokens = SomeTokens(200);
  const std::vector<Window> windows = MakeWindows(200, 200, 200);
  auto statistics = CollectStatistics(*model_, {.max_tokens = 300}, tokens, windows, nullptr);
  ASSERT_TRUE(statistics.ok()) << statistics.status();
  ASSERT_EQ(statistics->size(), 2u * 4);
  for (const auto& [place, input] : *statistics) {
    EXPECT_EQ(input.tokens, 200);
    EXPECT_EQ(input.sample.size() / input.mean.size(), 128u);
    for (size_t i = 0; i < input.mean.size(); ++i) EXPECT_LE(input.mean[i], input.largest[i]);
  }
  const std::vector<float> full = Logits(*MakeTrial("w16a16kv16"), tokens);
  const auto cost = [&](const char* setting, const absl::StatusOr<Smoothing>& smoothing) {
    EXPECT_TRUE(smoothing.ok()) << smoothing.status();
    auto trial = Trial::Create(*model_, *ParseSetting(setting), {.max_tokens = 300}, &*smoothing);
    EXPECT_TRUE(trial.ok()) << trial.status();
    return SignalToError(full, Logits(**trial, tokens));
  };
  const TrialOptions rounded = {.quantize = ckpt::LoadQuantization::kRtnGroup128};
  EXPECT_GT(cost("w4a16kv16", Awq(*model_, *statistics)),
            SignalToError(full, Logits(*MakeTrial("w4a16kv16", rounded), tokens)));
  EXPECT_GT(cost("w8a8kv16", SmoothQuant(*model_, *statistics, 0.5)), 25);
}

TEST_F(EvaluateTest, LayersAreComparedOneByOne) {
  const std::vector<int32_t> tokens = SomeTokens(300);
  const std::vector<Window> windows = MakeWindows(300, 300, 300);
  const ReportSource source = {*model_, *model_, *ParseSetting("w16a16kv4")};
  TrialOptions options;
  options.max_tokens = 300;
  const auto report = CompareLayers(source, options, tokens, windows, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->aligned);
  ASSERT_EQ(report->errors.size(), 2u * 9);
  for (const LayerError& error : report->errors) {
    const bool stored = error.what == "key" || error.what == "value";
    const bool before_attention = error.what.size() == 6 && error.what[0] != 'o';  // q, k, v
    if (error.layer == 0 && before_attention) {
      EXPECT_TRUE(std::isinf(error.snr_db)) << error.what;  // nothing was rounded so far
    } else {
      EXPECT_GT(error.snr_db, 10) << error.layer << error.what;
      EXPECT_LT(error.snr_db, stored ? 30 : 60) << error.layer << error.what;
    }
  }
}

TEST_F(EvaluateTest, LayersOfAnotherModelAreNotCompared) {
  ::qserve::testing::TemporaryDirectory other;
  fakes::RandomModelOptions options;
  options.seed = 2;
  ASSERT_TRUE(fakes::WriteRandomModel(other / "model", kSmallModel, options).ok());
  const auto stranger = ckpt::Checkpoint::Open(other / "model");
  ASSERT_TRUE(stranger.ok());
  const ReportSource source = {*model_, **stranger, *ParseSetting("w16a16kv4")};
  ExpectError(CompareLayers(source, {.max_tokens = 8}, SomeTokens(8), MakeWindows(8, 8, 8), nullptr)
                  .status(),
              absl::StatusCode::kInvalidArgument, "another model");
}

TEST(Text, OfJsonLinesIsJoined) {
  ::qserve::testing::TemporaryDirectory directory;
  WriteTextFile(directory / "a.jsonl", "{\"text\": \"The list\"}\n\n{\"text\": \"of values.\"}\n");
  WriteTextFile(directory / "a.txt", "The list\n\nof values.");
  const auto lines = ReadTokens(directory / "a.jsonl", kDemoModel, 0);
  ASSERT_TRUE(lines.ok()) << lines.status();
  EXPECT_EQ(*lines, *ReadTokens(directory / "a.txt", kDemoModel, 0));
  EXPECT_EQ(ReadTokens(directory / "a.txt", kDemoModel, 3)->size(), 3u);
  WriteTextFile(directory / "b.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n");
  ExpectError(ReadTokens(directory / "b.jsonl", kDemoModel, 0).status(),
              absl::StatusCode::kInvalidArgument, "line 2");
  WriteTextFile(directory / "c.txt", "");
  ExpectError(ReadTokens(directory / "c.txt", kDemoModel, 0).status(),
              absl::StatusCode::kInvalidArgument, "two tokens");
}

EvalOptions DemoOptions(const char* settings) {
  EvalOptions options = {.model = kDemoModel,
                         .text = std::string(kDemoModel) + "/heldout.txt",
                         .max_tokens = 256,
                         .sequence_length = 128,
                         .settings = *ParseSettings(settings)};
  options.trial.quantize = ckpt::LoadQuantization::kRtnGroup128;
  return options;
}

TEST(Evaluation, OfTheDemoModelHasATableAndLayers) {
  const auto result = Evaluate(DemoOptions("w16a16kv16,served"));
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->rows.size(), 2u);
  EXPECT_EQ(result->rows[0].tokens, 2 * 127);
  EXPECT_GT(result->rows[0].perplexity, 5);
  EXPECT_LT(result->rows[0].perplexity, 100);
  EXPECT_GT(result->rows[0].hit_rate, 0.2);
  EXPECT_NEAR(result->rows[1].delta_percent,
              100 * (result->rows[1].perplexity / result->rows[0].perplexity - 1), 1e-6);
  EXPECT_GT(result->rows[1].delta_error_percent, 0);
  EXPECT_EQ(result->rows[0].head, "float");
  EXPECT_EQ(result->rows[1].head, "int8");
  EXPECT_EQ(result->layers_setting, "served");
  EXPECT_EQ(result->layers.size(), 6u * 9);
}

TEST(Evaluation, MeasuresDivergenceFromTheReference) {
  EvalOptions options = DemoOptions("w16a16kv16,w16a16kv8,served");
  EXPECT_FALSE(Evaluate(options)->rows[0].divergence.has_value());
  options.reference = kDemoModel;
  options.layers = false;
  const auto result = Evaluate(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->rows[0].divergence, 0);
  EXPECT_EQ(result->rows[0].divergence_error, 0);
  EXPECT_GT(*result->rows[1].divergence, 0);
  EXPECT_GT(*result->rows[2].divergence, 10 * *result->rows[1].divergence);
  EXPECT_GT(result->rows[2].divergence_error, 0);
  EXPECT_LT(result->rows[2].divergence_error, *result->rows[2].divergence);
}

TEST(Evaluation, RefusesWhatTheDirectoriesCannotHave) {
  EvalOptions options = DemoOptions("w4a8kv4");
  options.trial.quantize = ckpt::LoadQuantization::kNone;
  ExpectError(Evaluate(options).status(), absl::StatusCode::kInvalidArgument, "needs a QoQ");
  options = DemoOptions("w16a16kv16");
  options.comparisons = {"w8a8"};
  ExpectError(Evaluate(options).status(), absl::StatusCode::kInvalidArgument, "--calibration");
  options.comparisons.clear();
  options.sequence_length = 4096;
  ExpectError(Evaluate(options).status(), absl::StatusCode::kInvalidArgument, "1024 positions");
  options.reference = "absent";
  ExpectError(Evaluate(options).status(), absl::StatusCode::kNotFound, "absent");
}

}  // namespace
}  // namespace qserve::quantizer
