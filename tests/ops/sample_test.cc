// What sampling means: distributions (chi-square with fixed seeds), filters, penalties, bias, bans,
// ties, log-probabilities, and that a NaN is an error. Every instruction set gives the reference's
// bits (float_parity_test.cc), so the fastest present one is used here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "tests/ops/float_cases.h"

namespace qserve::kernels::testing {
namespace {

class Sampling : public ::testing::Test {
 protected:
  Sampling() : rig_(1), ops_(ReferenceOps()) {
    for (const FloatOps& ops : FastOps()) {
      if (ops.present) ops_ = ops;
    }
  }
  StatusCode Run(const std::vector<float>& logits, const SampleRow& row, SampledToken* token) {
    const auto n = static_cast<int32_t>(logits.size());
    std::vector<SampledToken> results;
    const Status status = ops_.sample(rig_.context, {.logits = {logits.data(), 1, n, n},
                                                     .vocab_size = n,
                                                     .rows = {&row, 1},
                                                     .results = &results});
    if (status.ok()) *token = results.at(0);
    return status.code();
  }
  SampledToken Draw(const std::vector<float>& logits, const SampleRow& row) {
    SampledToken token;
    EXPECT_EQ(Run(logits, row, &token), StatusCode::kOk);
    return token;
  }
  // How often each id is drawn at `count` positions.
  std::map<int32_t, int> Histogram(const std::vector<float>& logits, SampleRow row, int count) {
    std::map<int32_t, int> histogram;
    for (int i = 0; i < count; ++i) {
      row.position = static_cast<uint32_t>(i);
      ++histogram[Draw(logits, row).id];
    }
    return histogram;
  }
  // The drawn frequencies against expected masses (summing to 1); nothing outside them is drawn.
  void ExpectDistribution(const std::vector<float>& logits, const SampleRow& row,
                          const std::map<int32_t, double>& masses) {
    constexpr int kDraws = 4000;
    double chi_square = 0;
    int seen = 0;
    const std::map<int32_t, int> histogram = Histogram(logits, row, kDraws);
    for (const auto& [id, mass] : masses) {
      const auto found = histogram.find(id);
      const double observed = found == histogram.end() ? 0 : found->second;
      seen += static_cast<int>(observed);
      chi_square += (observed - mass * kDraws) * (observed - mass * kDraws) / (mass * kDraws);
    }
    EXPECT_EQ(seen, kDraws) << "an id outside the set was drawn";
    const auto freedom = static_cast<double>(masses.size() - 1);
    EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2 * freedom) + 5);
  }
  Rig rig_;
  FloatOps ops_;
};

// Softmax of logits / temperature over `ids`.
std::map<int32_t, double> Masses(const std::vector<float>& logits, double temperature,
                                 const std::vector<int32_t>& ids) {
  std::map<int32_t, double> masses;
  double total = 0;
  for (const int32_t id : ids)
    total += masses[id] =
        std::exp(static_cast<double>(logits[static_cast<size_t>(id)]) / temperature);
  for (auto& [id, mass] : masses) mass /= total;
  return masses;
}

std::vector<int32_t> Range(int32_t end) {
  std::vector<int32_t> ids(static_cast<size_t>(end));
  for (int32_t i = 0; i < end; ++i) ids[static_cast<size_t>(i)] = i;
  return ids;
}

const std::vector<float> kSkewed = {2.0f, 1.0f, 0.0f, 1.5f, -1.0f, 0.5f, 0.25f, -0.5f, 1.25f, 0.0f};

TEST_F(Sampling, FollowsSoftmaxAtAnyTemperature) {
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    ExpectDistribution(kSkewed, {.temperature = temperature, .seed = 11},
                       Masses(kSkewed, static_cast<double>(temperature), Range(10)));
  }
  const std::vector<float> wide = RandomFloats(150, 4);
  ExpectDistribution(wide, {.seed = 12}, Masses(wide, 1, Range(150)));
}

TEST_F(Sampling, TopKKeepsTheMostLikelyAndLowestIds) {
  ExpectDistribution(kSkewed, {.top_k = 3, .seed = 3}, Masses(kSkewed, 1, {0, 3, 8}));
  // 2 and 9 tie for the last place: the lower id stays.
  ExpectDistribution(kSkewed, {.top_k = 7, .seed = 4}, Masses(kSkewed, 1, {0, 3, 8, 1, 5, 6, 2}));
  EXPECT_EQ(Histogram(kSkewed, {.top_k = 1, .seed = 5}, 50).at(0), 50);
  ExpectDistribution(kSkewed, {.top_k = 1000, .seed = 6}, Masses(kSkewed, 1, Range(10)));
}

TEST_F(Sampling, TopPIsTheSmallestSetThatReachesTheMass) {
  std::vector<float> logits(8, -INFINITY);  // masses 0.5, 0.25, 0.125, 0.125
  logits[5] = std::log(0.5f), logits[1] = std::log(0.25f), logits[6] = std::log(0.125f),
  logits[2] = std::log(0.125f);
  ExpectDistribution(logits, {.top_p = 0.74f, .seed = 1}, {{5, 2.0 / 3}, {1, 1.0 / 3}});
  ExpectDistribution(logits, {.top_p = 0.8f, .seed = 1},
                     {{5, 0.5 / 0.875}, {1, 0.25 / 0.875}, {2, 0.125 / 0.875}});
  EXPECT_EQ(Histogram(logits, {.top_p = 0.4f}, 30).at(5), 30);
  // After top_k the masses are those of what is left: 0.5 of 0.75 reaches 0.6.
  EXPECT_EQ(Histogram(logits, {.top_k = 2, .top_p = 0.6f}, 30).at(5), 30);
}

// More candidates than one selection step, against a plain sort.
TEST_F(Sampling, TopPOfAFlatVocabularyKeepsTheRightSet) {
  const std::vector<float> logits = RandomFloats(5000, 9, 0.3f);
  std::vector<int32_t> order = Range(5000);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  double total = 0, mass = 0;
  for (const float x : logits) total += std::exp(static_cast<double>(x));
  size_t kept = 0;
  while (mass < 0.7 * total)
    mass += std::exp(static_cast<double>(logits[static_cast<size_t>(order[kept++])]));
  const float cut = logits[static_cast<size_t>(order[kept + 1])];  // one id of slack for rounding
  std::map<int32_t, int> drawn = Histogram(logits, {.top_p = 0.7f, .seed = 2}, 600);
  for (const auto& [id, count] : drawn) EXPECT_GE(logits[static_cast<size_t>(id)], cut);
  EXPECT_GT(drawn.size(), 400u);
}

TEST_F(Sampling, MinPIsRelativeToTheLargest) {
  // exp(x - 2) >= 0.4 keeps 2.0, 1.5, 1.25.
  ExpectDistribution(kSkewed, {.min_p = 0.4f, .seed = 8}, Masses(kSkewed, 1, {0, 3, 8}));
}

TEST_F(Sampling, GreedyTakesTheLowestOfEquals) {
  EXPECT_EQ(Draw({1, 3, 3, 2, 3}, {.temperature = 0}).id, 1);
  std::vector<float> many(1000, 0.5f);
  EXPECT_EQ(Draw(many, {.temperature = 0}).id, 0);
  many[999] = 0.6f;
  EXPECT_EQ(Draw(many, {.temperature = 0}).id, 999);
}

TEST_F(Sampling, PenaltiesBiasAndBans) {
  const std::vector<float> logits = {4.0f, 3.9f, -1.0f, 3.0f};
  const std::vector<int32_t> prompt = {0}, output = {1, 1, 1};
  const auto greedy = [&](SampleRow row) {
    row.temperature = 0;
    return Draw(logits, row).id;
  };
  EXPECT_EQ(greedy({}), 0);
  EXPECT_EQ(greedy({.repetition_penalty = 1.1f, .prompt_ids = prompt}), 1) << "4 / 1.1 < 3.9";
  EXPECT_EQ(greedy({.repetition_penalty = 1.4f, .prompt_ids = prompt, .output_ids = output}), 3)
      << "once per id";
  EXPECT_EQ(greedy({.repetition_penalty = 1.1f, .prompt_ids = prompt, .output_ids = output}), 0)
      << "4 / 1.1 > 3.9 / 1.1";
  EXPECT_EQ(greedy({.presence_penalty = 5, .prompt_ids = prompt}), 0) << "only the output counts";
  const std::vector<float> close = {4.0f, 4.25f, -9.0f};
  SampleRow row{.temperature = 0, .presence_penalty = 0.2f, .output_ids = output};
  EXPECT_EQ(Draw(close, row).id, 1) << "presence counts once";
  row.presence_penalty = 0, row.frequency_penalty = 0.1f;
  EXPECT_EQ(Draw(close, row).id, 0) << "frequency counts three times";
  const std::vector<int32_t> bias_ids = {2, 2};
  const std::vector<float> bias = {4, 4}, down = {-2, -100};
  EXPECT_EQ(greedy({.bias_ids = bias_ids, .bias_values = bias}), 2) << "biases of one id add up";
  const std::vector<int32_t> first_two = {0, 1};
  EXPECT_EQ(greedy({.bias_ids = first_two, .bias_values = down}), 3);
  EXPECT_EQ(greedy({.bias_ids = bias_ids, .bias_values = bias, .banned_ids = bias_ids}), 0)
      << "a ban beats a bias";
  const std::vector<float> negative = {-1.0f, -1.05f};
  EXPECT_EQ(Draw(negative, {.temperature = 0, .repetition_penalty = 1.2f, .prompt_ids = prompt}).id,
            1)
      << "multiplied if negative";
  ExpectDistribution(kSkewed, {.banned_ids = first_two, .seed = 3},
                     Masses(kSkewed, 1, {2, 3, 4, 5, 6, 7, 8, 9}));
}

TEST_F(Sampling, SeedPositionAndCandidateDecideTheDraw) {
  const std::vector<float> flat(4096, 0.0f);
  const SampleRow row{.seed = 123, .candidate = 1, .position = 40};
  const int32_t id = Draw(flat, row).id;
  EXPECT_EQ(Draw(flat, row).id, id);
  for (SampleRow other :
       {SampleRow{.seed = 124, .candidate = 1, .position = 40},
        SampleRow{.seed = 123, .candidate = 2, .position = 40},
        SampleRow{.seed = 123, .candidate = 1, .position = 41},
        SampleRow{.seed = 123 + (uint64_t{1} << 40), .candidate = 1, .position = 40}}) {
    EXPECT_NE(Draw(flat, other).id, id);
  }
}

TEST_F(Sampling, LogprobsAreTheRawLogSoftmax) {
  const std::vector<float> logits = RandomFloats(777, 14, 2.0f);
  double total = 0;
  for (const float x : logits) total += std::exp(static_cast<double>(x));
  const std::vector<int32_t> banned = {0, 1, 2};
  const SampledToken token =
      Draw(logits, {.temperature = 0.3f, .banned_ids = banned, .seed = 5, .logprobs = 777});
  EXPECT_NEAR(static_cast<double>(token.logprob),
              static_cast<double>(logits[static_cast<size_t>(token.id)]) - std::log(total), 2e-6);
  ASSERT_EQ(token.top.size(), 777u);
  double sum = 0;
  for (size_t i = 0; i < token.top.size(); ++i) {
    sum += std::exp(static_cast<double>(token.top[i].logprob));
    if (i > 0) {
      const int32_t before = token.top[i - 1].id, id = token.top[i].id;
      const float a = logits[static_cast<size_t>(before)], b = logits[static_cast<size_t>(id)];
      EXPECT_TRUE(a > b || (a == b && before < id));
    }
  }
  EXPECT_NEAR(sum, 1.0, 1e-5);
  EXPECT_TRUE(Draw(logits, {.logprobs = 0}).top.empty());
  EXPECT_LT(Draw(logits, {.logprobs = 0}).logprob, 0);
  EXPECT_EQ(Draw(logits, {.logprobs = -1}).logprob, 0);
}

TEST_F(Sampling, NanAndNothingLeftAreErrors) {
  SampledToken token;
  std::vector<float> logits = kSkewed;
  logits[9] = NAN;
  EXPECT_EQ(Run(logits, {.temperature = 0}, &token), StatusCode::kDevice);
  EXPECT_EQ(Run(logits, {.top_k = 2}, &token), StatusCode::kDevice);
  EXPECT_EQ(Run({-INFINITY, -INFINITY}, {}, &token), StatusCode::kDevice);
  logits[9] = INFINITY;
  EXPECT_EQ(Draw(logits, {.top_p = 0.5f}).id, 9);
}

}  // namespace
}  // namespace qserve::kernels::testing
