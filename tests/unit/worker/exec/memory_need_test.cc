// What ranks need by degree, against sizes known otherwise.
#include "worker/exec/memory_need.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "worker/model/weights.h"

namespace qserve::worker::exec {
namespace {

using kernels::KvFormat;
using kernels::WeightFormat;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Of Llama-3-70B.
checkpoint::ModelConfig LargeModel() {
  checkpoint::ModelConfig config;
  config.hidden_size = 8192;
  config.intermediate_size = 28672;
  config.layers = 80;
  config.heads = 64;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.vocab_size = 128256;
  config.float_type = kernels::FloatType::kBf16;
  config.scheme = checkpoint::Scheme::kQoqGroup128;
  return config;
}

int64_t WeightsAt(int degree) {
  const checkpoint::ModelConfig config = LargeModel();
  return WeightBytesOfRank(config, *model::MakeShard(config, 0, degree), {});
}

TEST(MemoryNeed, WeightsAreWhatTheirParametersTake) {
  // 68.45e9 parameters in the layers at half a byte and 4 bytes a row and group of 128, 1.05e9 in
  // the embedding at 2 and in the head at 1.
  const double layers = 80.0 * (8192.0 * 10240 + 8192.0 * 8192 + 3 * 8192.0 * 28672);
  const double expected = layers * (0.5 + 4.0 / 128) + 8192.0 * 128256 * (2 + 1);
  EXPECT_NEAR(static_cast<double>(WeightsAt(1)), expected, expected * 0.002);
  EXPECT_NEAR(static_cast<double>(WeightsAt(4)), expected / 4, expected / 4 * 0.005);
  EXPECT_EQ(model::LinearFormat(LargeModel(), checkpoint::LoadQuantization::kNone),
            WeightFormat::kW4Group128);
}

TEST(MemoryNeed, AdviceIsTheFirstDegreeThatFits) {
  const checkpoint::ModelConfig config = LargeModel();
  const std::vector<KvFormat> kv(80, KvFormat::kInt4);
  const ServedFormats formats = {.kv = kv};
  const int64_t gibibyte = int64_t{1} << 30;
  // 38 GiB on one, 19 on two, 9.5 on four; 8192 tokens of KV4 are 0.7 GiB on one.
  const std::string four = DegreeAdvice(config, formats, 1, 8192, 16 * gibibyte);
  EXPECT_THAT(four, HasSubstr("--tensor-parallel-size 4 "));
  EXPECT_THAT(four, HasSubstr("8192 tokens"));
  EXPECT_THAT(DegreeAdvice(config, formats, 1, 8192, 24 * gibibyte),
              HasSubstr("--tensor-parallel-size 2 "));
  EXPECT_THAT(DegreeAdvice(config, formats, 4, 8192, 24 * gibibyte),
              HasSubstr("--tensor-parallel-size 8 "))
      << "a larger one than was tried";
  EXPECT_THAT(DegreeAdvice(config, formats, 1, 8192, gibibyte / 8),
              HasSubstr("no tensor-parallel"));
  EXPECT_THAT(DegreeAdvice(config, formats, 64, 8192, gibibyte), IsEmpty()) << "there is no larger";
  EXPECT_THAT(DegreeAdvice(config, {.linears = WeightFormat::kFloat, .kv = kv}, 1, 1, gibibyte),
              IsEmpty());
}

}  // namespace
}  // namespace qserve::worker::exec
