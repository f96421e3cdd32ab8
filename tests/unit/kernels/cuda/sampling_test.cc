// Sampling on the emulated GPU against the CPU reference: the same ids for thousands of random rows
// of every kind, log-probabilities within 1e-5, the same errors; and what only the device has:
// grammar masks, recorded launches with fewer rows, plans that do not fit.
#include "kernels/cuda/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "common/philox.h"
#include "kernels/cuda/device/sampling_select.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/sampling_plan.h"
#include "tests/ops/float_cases.h"

namespace qserve::kernels::cuda {
namespace {

using ::qserve::kernels::testing::RandomFloats;
using ::qserve::kernels::testing::ReferenceOps;
using ::qserve::kernels::testing::Rig;

constexpr int32_t kSlots = 64;

struct alignas(16) Chunk {
  std::byte bytes[16];
};

// Logits of a step, and both ways of sampling from them.
struct Step {
  std::vector<float> logits;
  int64_t stride = 0;
  int32_t vocab = 0;
  std::vector<SampleRow> rows;
  std::vector<int32_t> masks;        // per row, or empty
  std::vector<uint32_t> mask_words;  // (vocab + 31) / 32 a mask
  float* row(size_t r) { return logits.data() + static_cast<int64_t>(r) * stride; }
};

struct Drawn {
  Status status;
  std::vector<SampledToken> tokens;
  std::vector<int32_t> ids = std::vector<int32_t>(kSlots, -9);
};

Drawn OnCpu(const Step& step) {
  Drawn drawn;
  Rig rig(1);
  const auto rows = std::ssize(step.rows);
  drawn.status = ReferenceOps().sample(
      rig.context, {.logits = {step.logits.data(), rows, step.stride, step.stride},
                    .vocab_size = step.vocab,
                    .rows = step.rows,
                    .sampled_ids = drawn.ids.data(),
                    .results = &drawn.tokens});
  return drawn;
}

// `capacity`: bytes of the input block; several launches if it does not hold all rows.
Drawn OnDevice(Step& step, uint64_t order_seed = 0, int64_t capacity = 1 << 20) {
  Drawn drawn;
  const std::vector<float> before = step.logits;
  std::vector<Chunk> inputs(static_cast<size_t>(capacity / 16)), results(4096);
  SamplingScratch scratch;
  emulator::Stream stream(order_seed);
  size_t first = 0;
  while (first < step.rows.size()) {
    const auto left = std::span(step.rows).subspan(first);
    const auto masks = step.masks.empty() ? std::span<const int32_t>()
                                          : std::span<const int32_t>(step.masks).subspan(first);
    const StatusOr<SamplingPlan> plan =
        PlanSampling(left, masks, step.vocab, std::as_writable_bytes(std::span(inputs)),
                     std::ssize(results) * 16, scratch);
    if (!plan.ok()) {
      drawn.status = plan.status();
      return drawn;
    }
    EXPECT_LE((*plan).input_bytes, capacity);
    EXPECT_EQ(LaunchSampling(&stream, {.logits = step.row(first),
                                       .stride = step.stride,
                                       .vocab_size = step.vocab,
                                       .rows = (*plan).rows + 1,  // as a bucket that is not full
                                       .inputs = reinterpret_cast<uint8_t*>(inputs.data()),
                                       .results = reinterpret_cast<uint8_t*>(results.data()),
                                       .sampled_ids = drawn.ids.data(),
                                       .masks = step.mask_words.data(),
                                       .mask_stride = (step.vocab + 31) / 32}),
              0);
    stream.Synchronize();
    const auto taken = static_cast<size_t>((*plan).rows);
    drawn.status = ReadSamplingResults(left.first(taken), static_cast<int64_t>(first),
                                       std::as_bytes(std::span(results)), &drawn.tokens);
    if (!drawn.status.ok()) break;
    first += taken;
  }
  EXPECT_EQ(std::memcmp(before.data(), step.logits.data(), before.size() * sizeof(float)), 0)
      << "the logits are as they were";
  return drawn;
}

void ExpectSame(const Drawn& got, const Drawn& expected, const std::string& what) {
  ASSERT_EQ(got.status.code(), expected.status.code()) << what << ": " << got.status.message();
  EXPECT_EQ(got.status.message(), expected.status.message());
  if (!expected.status.ok()) return;
  EXPECT_EQ(got.ids, expected.ids) << what;
  ASSERT_EQ(got.tokens.size(), expected.tokens.size()) << what;
  for (size_t r = 0; r < got.tokens.size(); ++r) {
    const SampledToken &a = got.tokens[r], &b = expected.tokens[r];
    EXPECT_EQ(a.slot, b.slot);
    EXPECT_EQ(a.id, b.id) << what << ", row " << r;
    EXPECT_NEAR(a.logprob, b.logprob, 1e-5f) << what << ", row " << r;
    ASSERT_EQ(a.top.size(), b.top.size()) << what << ", row " << r;
    for (size_t i = 0; i < a.top.size(); ++i) {
      EXPECT_EQ(a.top[i].id, b.top[i].id) << what << ", row " << r << ", place " << i;
      EXPECT_NEAR(a.top[i].logprob, b.top[i].logprob, 1e-5f) << what << ", row " << r;
    }
  }
}

uint32_t Random(uint64_t seed, uint32_t index, uint32_t what) {
  return Philox4x32({index, what, 5, 0},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)})[0];
}

Step RandomLogits(int32_t vocab, int64_t rows, uint64_t seed, float deviation) {
  Step step;
  step.vocab = vocab;
  step.stride = vocab + 5;
  step.logits = RandomFloats(rows * step.stride, seed, deviation);
  step.rows.resize(static_cast<size_t>(rows));
  for (size_t r = 0; r < step.rows.size(); ++r) {
    step.rows[r] = {.slot = static_cast<int32_t>(r),
                    .seed = seed * 77 + (uint64_t{r} << 33),
                    .candidate = static_cast<uint32_t>(r % 3),
                    .position = static_cast<uint32_t>(seed % 1000)};
    for (int64_t i = vocab; i < step.stride; ++i) step.row(r)[i] = 99;  // padding never wins
  }
  return step;
}

// Lists that rows point into.
const std::vector<int32_t> kPrompt = {1, 2, 3, 50, 50, 64}, kOutput = {7, 7, 9, 50, 63};
const std::vector<int32_t> kBiasIds = {7, 40, 7, 8}, kBanned = {3, 50, 8};
const std::vector<float> kBiasValues = {-3.0f, 6.0f, 0.1f, 100.0f};

// Switches on some of what a row can ask for.
void Vary(uint64_t seed, uint32_t index, SampleRow& row) {
  const auto one_in = [&](uint32_t n, uint32_t what) { return Random(seed, index, what) % n == 0; };
  const auto unit = [&](uint32_t what) { return UniformOpen(Random(seed, index, what)); };
  row.temperature = one_in(5, 0) ? 0.0f : (one_in(3, 1) ? 1.0f : 0.05f + 3 * unit(2));
  if (one_in(3, 3)) row.top_k = 1 + static_cast<int32_t>(Random(seed, index, 4) % 60);
  if (one_in(2, 5)) row.top_p = unit(6);
  if (one_in(4, 7)) row.min_p = 0.2f * unit(8);
  if (one_in(4, 9)) {
    row.repetition_penalty = 0.7f + unit(10);
    row.prompt_ids = kPrompt;
    row.output_ids = kOutput;
  }
  if (one_in(5, 11)) {
    row.presence_penalty = 2 * unit(12) - 1;
    row.frequency_penalty = unit(13);
    row.output_ids = kOutput;
  }
  if (one_in(6, 14)) row.bias_ids = kBiasIds, row.bias_values = kBiasValues;
  if (one_in(6, 15)) row.banned_ids = kBanned;
  if (one_in(3, 16)) row.logprobs = static_cast<int32_t>(Random(seed, index, 17) % 21);
}

TEST(Sampling, DrawsTheIdsOfTheCpu) {
  for (uint64_t round = 0; round < 60; ++round) {
    const int32_t vocab = round % 3 == 0 ? 65 : (round % 3 == 1 ? 500 : 1003);
    Step step = RandomLogits(vocab, 40, 1000 + round, 0.5f + static_cast<float>(round % 7));
    for (uint32_t r = 0; r < 40; ++r) Vary(round, r, step.rows[r]);
    ExpectSame(OnDevice(step, round), OnCpu(step), "round " + std::to_string(round));
  }
}

TEST(Sampling, DrawsTheIdsOfTheCpuFromALargeVocabulary) {
  for (uint64_t round = 0; round < 2; ++round) {
    Step step = RandomLogits(20011, 12, 5000 + round, 2.5f);
    for (uint32_t r = 0; r < 12; ++r) Vary(100 + round, r, step.rows[r]);
    step.rows[3] = {.slot = 3, .temperature = 1.5f, .top_p = 0.95f, .seed = 3, .logprobs = 20};
    ExpectSame(OnDevice(step, round), OnCpu(step), "round " + std::to_string(round));
  }
}

// More ids share the decisive bin, or the decisive value, than a list holds.
TEST(Sampling, CutsThroughCrowds) {
  constexpr int32_t kVocab = 6000;
  Step step = RandomLogits(kVocab, 9, 11, 0.001f);
  for (int32_t i = 0; i < kVocab; ++i) {
    step.row(2)[i] = 1.0f;                                           // all equal
    step.row(3)[i] = i % 2 == 0 ? 0.0f : -0.0f;                      // equal as numbers
    step.row(4)[i] = i % 3 == 0 ? 4.0f : 1.0f;                       // two values
    step.row(5)[i] = static_cast<float>(-i) * 1e-6f;                 // neighbours
    step.row(6)[i] = i == 17 ? 1e30f : static_cast<float>(i % 100);  // one far ahead
    step.row(7)[i] = i % 5 == 0 ? -INFINITY : step.row(7)[i];
    step.row(8)[i] = i % 2 == 0 ? 40.0f : -40.0f;  // far apart
  }
  for (uint32_t kind = 0; kind < 5; ++kind) {
    for (SampleRow& row : step.rows) {
      row.top_k = kind == 0 ? 3000 : (kind == 1 ? 5 : (kind == 4 ? 5500 : 0));
      row.top_p = kind == 2 ? 0.6f : (kind >= 3 ? 0.9f : 1.0f);
      row.position = 70 + kind;
      row.logprobs = kind == 1 ? 25 : -1;
    }
    ExpectSame(OnDevice(step, kind), OnCpu(step), "kind " + std::to_string(kind));
  }
}

TEST(Sampling, ExtremeLogitsAreThoseOfTheCpu) {
  for (uint64_t seed = 0; seed < 3; ++seed) {
    Step step = RandomLogits(300, 8, 40 + seed, 1.0f);
    step.row(0)[7] = INFINITY;
    step.row(1)[8] = step.row(1)[9] = INFINITY;
    for (int32_t i = 0; i < 300; ++i) {
      if (i != 200) step.row(2)[i] = -INFINITY;
      step.row(3)[i] *= 1e5f;
      step.row(4)[i] += 3e6f;
      step.row(5)[i] = step.row(5)[i] > 0 ? 0.0f : -0.0f;
      step.row(6)[i] *= 3e37f;
    }
    step.rows[1].temperature = 0.3f, step.rows[1].top_p = 0.2f;
    step.rows[2].top_k = 4, step.rows[2].logprobs = 3;
    step.rows[6].top_k = 20, step.rows[6].temperature = 1e-3f;
    step.rows[7].temperature = 1e-40f;
    ExpectSame(OnDevice(step, seed), OnCpu(step), "seed " + std::to_string(seed));
  }
}

// Logits so large that most sums with a random number round to the same few values.
TEST(Sampling, EqualDrawsGoToTheLowestId) {
  Step step = RandomLogits(2000, 30, 17, 1.0f);
  for (float& x : step.logits) x = 1e8f;
  for (uint32_t r = 0; r < 30; ++r) step.rows[r].position = r;
  ExpectSame(OnDevice(step, 1), OnCpu(step), "ties");
}

// Distances from infinity say nothing, and there are more ids than a list holds.
TEST(Sampling, InfiniteLogitsComeFirst) {
  Step step = RandomLogits(5000, 1, 12, 1.0f);
  step.row(0)[4000] = step.row(0)[3000] = INFINITY;
  step.rows[0].logprobs = 5;
  const Drawn got = OnDevice(step), expected = OnCpu(step);
  ASSERT_TRUE(got.status.ok());
  EXPECT_EQ(got.tokens[0].id, 3000);
  ASSERT_EQ(got.tokens[0].top.size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(got.tokens[0].top[i].id, expected.tokens[0].top[i].id) << i;
  }
}

TEST(Sampling, GreedyTakesTheLowestIdAmongEquals) {
  Step step = RandomLogits(700, 2, 9, 1.0f);
  step.row(0)[650] = step.row(0)[13] = step.row(0)[14] = 50;
  step.row(1)[650] = 50;
  step.rows[0].temperature = step.rows[1].temperature = 0;
  const Drawn drawn = OnDevice(step);
  ASSERT_TRUE(drawn.status.ok());
  EXPECT_EQ(drawn.tokens[0].id, 13);
  EXPECT_EQ(drawn.tokens[1].id, 650);
  EXPECT_EQ(drawn.ids[1], 650);
}

TEST(Sampling, ErrorsNameTheRowAndLeaveItsSlot) {
  for (const bool nan : {true, false}) {
    for (const float temperature : {0.0f, 0.8f}) {
      Step step = RandomLogits(200, 3, 3, 1.0f);
      for (int32_t i = 0; i < 200; ++i) step.row(1)[i] = nan ? step.row(1)[i] : -INFINITY;
      if (nan) step.row(1)[150] = -NAN;
      step.rows[1].temperature = temperature;
      const Drawn got = OnDevice(step), expected = OnCpu(step);
      ExpectSame(got, expected, nan ? "NaN" : "nothing");
      EXPECT_EQ(got.status.code(), StatusCode::kDevice);
      EXPECT_EQ(got.ids[1], -9);
    }
  }
  Step banned_nan = RandomLogits(200, 1, 3, 1.0f);
  banned_nan.row(0)[50] = NAN;
  banned_nan.rows[0].banned_ids = kBanned;
  EXPECT_EQ(OnDevice(banned_nan).status.code(), StatusCode::kDevice) << "a ban hides no NaN";
}

TEST(Sampling, GrammarMasksLeaveTheAllowedIds) {
  constexpr int32_t kVocab = 333;
  Step step = RandomLogits(kVocab, 4, 21, 2.0f);
  constexpr size_t kWords = (kVocab + 31) / 32;
  step.mask_words.assign(2 * kWords, 0);
  Step banned = step;
  std::vector<int32_t> forbidden;
  for (int32_t id = 0; id < kVocab; ++id) {
    if (id % 7 == 3) {
      step.mask_words[kWords + static_cast<size_t>(id) / 32] |= 1u << (id % 32);
    } else {
      forbidden.push_back(id);
    }
  }
  step.masks = {1, -1, 1, 1};
  for (size_t r = 0; r < 4; ++r) {
    if (r == 2) step.rows[r].temperature = 0;
    if (r == 3) step.rows[r].top_p = 0.7f;
    step.rows[r].logprobs = 2;
  }
  for (uint32_t position = 0; position < 20; ++position) {
    for (SampleRow& row : step.rows) row.position = position;
    banned.rows = step.rows;
    for (const size_t r : {0u, 2u, 3u}) banned.rows[r].banned_ids = forbidden;
    ExpectSame(OnDevice(step, position), OnCpu(banned), "position " + std::to_string(position));
  }
  step.masks = {0, -1, -1, -1};  // allows nothing
  EXPECT_EQ(OnDevice(step).status.code(), StatusCode::kDevice);
}

TEST(Sampling, ARowDoesNotDependOnTheOthersOrOnThePlan) {
  Step step = RandomLogits(400, 30, 31, 2.0f);
  for (uint32_t r = 0; r < 30; ++r) Vary(7, r, step.rows[r]);
  const Drawn together = OnDevice(step);
  ASSERT_TRUE(together.status.ok());
  const Drawn in_parts = OnDevice(step, 5, 1024);
  ASSERT_EQ(in_parts.tokens.size(), 30u);
  for (size_t r = 0; r < 30; ++r) {
    EXPECT_EQ(in_parts.tokens[r].id, together.tokens[r].id);
    EXPECT_EQ(in_parts.tokens[r].logprob, together.tokens[r].logprob) << "to the bit";
    for (size_t i = 0; i < together.tokens[r].top.size(); ++i) {
      EXPECT_EQ(in_parts.tokens[r].top[i].logprob, together.tokens[r].top[i].logprob);
    }
  }
}

TEST(Sampling, PlansAreBounded) {
  SamplingScratch scratch;
  std::vector<Chunk> block(1000);
  const auto bytes = std::as_writable_bytes(std::span(block));
  const std::vector<int32_t> ids = {5, 5, 6};
  const std::vector<float> values = {1, 2, 3};
  std::vector<SampleRow> rows(3);
  rows[1].bias_ids = ids, rows[1].bias_values = values, rows[1].logprobs = 4;
  StatusOr<SamplingPlan> plan = PlanSampling(rows, {}, 10, bytes, 16000, scratch);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ((*plan).rows, 3);
  EXPECT_EQ((*plan).input_bytes,
            SamplingInputBytes(3) + 2 * static_cast<int64_t>(sizeof(SamplingEdit)) + 3 * 4);
  EXPECT_EQ((*plan).result_bytes, 3 * 16 + 4 * 8);
  const int64_t exact = (*plan).input_bytes;
  plan = PlanSampling(rows, {}, 10, bytes.first(static_cast<size_t>(exact)), 80, scratch);
  EXPECT_EQ((*plan).rows, 3);
  plan = PlanSampling(rows, {}, 10, bytes.first(static_cast<size_t>(exact - 1)), 80, scratch);
  EXPECT_EQ((*plan).rows, 2) << "as many as fit";
  EXPECT_EQ((*PlanSampling(rows, {}, 10, bytes, 79, scratch)).rows, 2);
  EXPECT_EQ((*PlanSampling(rows, {}, 10, bytes, 63, scratch)).rows, 1);
  EXPECT_EQ(PlanSampling(rows, {}, 10, bytes.first(90), 80, scratch).status().code(),
            StatusCode::kOutOfMemory);
  rows[0].logprobs = kMaxTopLogprobs + 1;
  EXPECT_EQ(PlanSampling(rows, {}, 10, bytes, 16000, scratch).status().code(),
            StatusCode::kUnsupported);
  EXPECT_TRUE(PlanSampling({}, {}, 10, bytes, 16000, scratch).ok());
  EXPECT_NE(LaunchSampling(nullptr, {.vocab_size = kMaxVocabulary + 1, .rows = 1}), 0);
}

TEST(Sampling, KeysHaveTheOrderOfFloats) {
  const std::vector<float> ascending = {-INFINITY, -3e38f, -1.0f, -1e-40f, 0.0f,
                                        1e-40f,    1.0f,   3e38f, INFINITY};
  for (size_t i = 0; i + 1 < ascending.size(); ++i) {
    EXPECT_LT(KeyOf(ascending[i]), KeyOf(ascending[i + 1]));
    EXPECT_EQ(ValueOf(KeyOf(ascending[i])), ascending[i]);
  }
  EXPECT_EQ(KeyOf(-0.0f), KeyOf(0.0f));
  EXPECT_EQ(KeyOf(-INFINITY), kKeyOfLowest);
  EXPECT_EQ(KeyOf(INFINITY), kKeyOfInfinity);
  EXPECT_GT(KeyOf(-NAN), kKeyOfInfinity);
}

}  // namespace
}  // namespace qserve::kernels::cuda
