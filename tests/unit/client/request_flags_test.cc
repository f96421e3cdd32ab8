// Flags to messages: what is unset stays unset, what is given arrives as it is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "client/request_flags.h"

namespace qserve::client {
namespace {

using testing::ElementsAre;

absl::StatusOr<v1::GenerationSpec> Parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "program");
  RequestFlags flags;
  cli::Options options("program", "A test");
  DeclareRequest(options, flags);
  if (options.Parse(static_cast<int>(arguments.size()), arguments.data()))
    return absl::FailedPreconditionError("refused by the parser");
  return MakeSpec(flags);
}

TEST(RequestFlags, LeaveUnsetFieldsToTheServer) {
  const auto spec = Parse({});
  ASSERT_TRUE(spec.ok());
  EXPECT_FALSE(spec->sampling().has_temperature());
  EXPECT_FALSE(spec->sampling().has_seed());
  EXPECT_FALSE(spec->stopping().has_max_tokens());
  EXPECT_EQ(spec->stopping().stop_size(), 0);
}

TEST(RequestFlags, FillTheMessage) {
  const auto spec =
      Parse({"--max-tokens", "5", "--temperature=0", "--top-p", "0.5", "--top-k", "7", "--min-p",
             "0.25", "--seed", "18446744073709551615", "--stop", "[end]", "--stop", "a,b"});
  ASSERT_TRUE(spec.ok());
  EXPECT_EQ(spec->stopping().max_tokens(), 5);
  EXPECT_TRUE(spec->sampling().has_temperature());
  EXPECT_EQ(spec->sampling().temperature(), 0.0f);
  EXPECT_EQ(spec->sampling().top_p(), 0.5f);
  EXPECT_EQ(spec->sampling().top_k(), 7);
  EXPECT_EQ(spec->sampling().min_p(), 0.25f);
  EXPECT_EQ(spec->sampling().seed(), 18446744073709551615ull);
  EXPECT_THAT(spec->stopping().stop(), ElementsAre("[end]", "a,b"));
}

TEST(RequestFlags, RefuseWhatTheyDoNotKnow) {
  EXPECT_FALSE(Parse({"--temprature", "1"}).ok());
  EXPECT_FALSE(Parse({"--max-tokens", "many"}).ok());
  EXPECT_FALSE(Parse({"--seed", "-1"}).ok());
  EXPECT_FALSE(Parse({"--timeout", "-1"}).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Parse({"--stop", "\xff"}).status()));
}

TEST(RequestFlags, TimeoutIsRoundedUpSoThatItIsNeverNone) {
  RequestFlags flags;
  EXPECT_EQ(AnswerTimeout(flags).count(), 0);
  flags.timeout = 0.0001;
  EXPECT_EQ(AnswerTimeout(flags).count(), 1);
  flags.timeout = 2.5;
  EXPECT_EQ(AnswerTimeout(flags).count(), 2500);
}

TEST(ParseTokenIds, ReadsListsAndRefusesTheRest) {
  EXPECT_THAT(ParseTokenIds("1,2, 3").value(), ElementsAre(1, 2, 3));
  EXPECT_THAT(ParseTokenIds("0").value(), ElementsAre(0));
  for (const char* bad : {"", "1,", ",1", "1;2", "-1", "2147483648", "1 2", "0x10"})
    EXPECT_FALSE(ParseTokenIds(bad).ok()) << bad;
}

TEST(ReadPrompt, TakesAllOfTheInputWithinBounds) {
  std::istringstream text("one\ntwo\n");
  EXPECT_EQ(ReadPrompt(text).value(), "one\ntwo\n");
  std::istringstream broken("\xc3");
  EXPECT_TRUE(absl::IsInvalidArgument(ReadPrompt(broken).status()));
  std::istringstream large(std::string((8 << 20) + 1, 'x'));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadPrompt(large).status()));
}

}  // namespace
}  // namespace qserve::client
