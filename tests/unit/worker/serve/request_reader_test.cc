// Every field out of range is refused by name, all at once; everything legal arrives as it should.
#include <cmath>
#include <functional>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/rpc/errors.h"
#include "worker/serve/request_reader.h"

namespace qserve::worker::serve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class RequestReaderTest : public testing::Test {
 protected:
  void SetUp() override {
    model_.name = "demo";
    model_.vocab_size = 4096;
    model_.max_model_len = 64;
    model_.numerics_id = "numerics";
    model_.eos_token_ids = {1, 3};
    model_.tokenizer = *text::Tokenizer::Load("deploy/demo-model");
    model_.chat_template = *text::ChatTemplate::Load("deploy/demo-model");
    spec_.set_model("demo");
    spec_.mutable_prompt()->set_text("Hello");
  }
  ReadResult Read() { return ReadGeneration(spec_, model_, now_, kNever); }

  ServedModel model_;
  v1::GenerationSpec spec_;
  TimePoint now_{std::chrono::seconds(100)};
};

TEST_F(RequestReaderTest, AppliesDefaultsOfTheModelThenOfTheApi) {
  model_.defaults.temperature = 0.7f;
  ReadResult read = Read();
  ASSERT_TRUE(read.status.ok()) << rpc::Describe(read.status);
  const engine::EngineRequest& request = read.request.engine;
  EXPECT_EQ(request.sampling.temperature, 0.7f);
  EXPECT_EQ(request.sampling.top_p, 1.0f);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.candidates, 1);
  EXPECT_EQ(request.sampling.logprobs, -1);
  EXPECT_THAT(request.stop_ids, ElementsAre(1, 3));
  EXPECT_EQ(request.max_tokens, 64 - static_cast<int32_t>(request.prompt.size()));
  EXPECT_EQ(request.prompt.front(), 0);  // beginning of text
  EXPECT_EQ(request.arrival, now_);
  EXPECT_FALSE(read.request.request_id.empty());
}

TEST_F(RequestReaderTest, ZeroIsAValueNotAbsence) {
  model_.defaults.temperature = 0.7f;
  spec_.mutable_sampling()->set_temperature(0);
  spec_.mutable_sampling()->set_seed(0);
  ReadResult read = Read();
  ASSERT_TRUE(read.status.ok());
  EXPECT_EQ(read.request.engine.sampling.temperature, 0.0f);
  EXPECT_EQ(read.request.engine.sampling.seed, 0u);
}

TEST_F(RequestReaderTest, MinTokensBansTheEnds) {
  spec_.mutable_stopping()->set_min_tokens(4);
  spec_.mutable_stopping()->add_stop_token_ids(9);
  ReadResult read = Read();
  ASSERT_TRUE(read.status.ok());
  EXPECT_THAT(read.request.engine.sampling.banned_ids, ElementsAre(1, 3, 9));
  spec_.mutable_stopping()->set_ignore_eos(true);
  EXPECT_THAT(Read().request.engine.stop_ids, ElementsAre(9));
}

struct BadField {
  const char* field;
  std::function<void(v1::GenerationSpec&)> spoil;
};

std::vector<BadField> BadSampling() {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  return {
      {"spec.sampling.temperature", [](auto& s) { s.mutable_sampling()->set_temperature(-0.1f); }},
      {"spec.sampling.temperature", [](auto& s) { s.mutable_sampling()->set_temperature(2.1f); }},
      {"spec.sampling.temperature", [=](auto& s) { s.mutable_sampling()->set_temperature(kNan); }},
      {"spec.sampling.top_p", [](auto& s) { s.mutable_sampling()->set_top_p(0); }},
      {"spec.sampling.top_p", [](auto& s) { s.mutable_sampling()->set_top_p(1.5f); }},
      {"spec.sampling.top_k", [](auto& s) { s.mutable_sampling()->set_top_k(-1); }},
      {"spec.sampling.min_p", [](auto& s) { s.mutable_sampling()->set_min_p(INFINITY); }},
      {"spec.sampling.repetition_penalty",
       [](auto& s) { s.mutable_sampling()->set_repetition_penalty(0); }},
      {"spec.sampling.presence_penalty",
       [](auto& s) { s.mutable_sampling()->set_presence_penalty(-2.5f); }},
      {"spec.sampling.frequency_penalty",
       [=](auto& s) { s.mutable_sampling()->set_frequency_penalty(kNan); }},
      {"spec.sampling.logit_bias",
       [](auto& s) { (*s.mutable_sampling()->mutable_logit_bias())[4096] = 1; }},
      {"spec.sampling.logit_bias",
       [](auto& s) { (*s.mutable_sampling()->mutable_logit_bias())[-1] = 1; }},
      {"spec.sampling.logit_bias",
       [](auto& s) { (*s.mutable_sampling()->mutable_logit_bias())[5] = 1000; }},
      {"spec.sampling.logit_bias", [](auto& s) {
         for (int i = 0; i <= kMaxLogitBias; ++i)
           (*s.mutable_sampling()->mutable_logit_bias())[i] = 1;
       }}};
}

std::vector<BadField> BadStopping() {
  return {{"spec.stopping.max_tokens", [](auto& s) { s.mutable_stopping()->set_max_tokens(0); }},
          {"spec.stopping.max_tokens", [](auto& s) { s.mutable_stopping()->set_max_tokens(-5); }},
          {"spec.stopping.min_tokens", [](auto& s) { s.mutable_stopping()->set_min_tokens(-1); }},
          {"spec.stopping.min_tokens",
           [](auto& s) {
             s.mutable_stopping()->set_max_tokens(2);
             s.mutable_stopping()->set_min_tokens(3);
           }},
          {"spec.stopping.stop", [](auto& s) { s.mutable_stopping()->add_stop(""); }},
          {"spec.stopping.stop",
           [](auto& s) { s.mutable_stopping()->add_stop(std::string(257, 'x')); }},
          {"spec.stopping.stop",
           [](auto& s) {
             for (int i = 0; i < 1000; ++i) s.mutable_stopping()->add_stop("x");
           }},
          {"spec.stopping.stop_token_ids",
           [](auto& s) { s.mutable_stopping()->add_stop_token_ids(4096); }},
          {"spec.stopping.stop_token_ids", [](auto& s) {
             for (int i = 0; i < 65; ++i) s.mutable_stopping()->add_stop_token_ids(5);
           }}};
}

std::vector<BadField> BadRest() {
  return {
      {"spec.output.n", [](auto& s) { s.mutable_output()->set_n(0); }},
      {"spec.output.n", [](auto& s) { s.mutable_output()->set_n(17); }},
      {"spec.output.logprobs", [](auto& s) { s.mutable_output()->set_logprobs(21); }},
      {"spec.output.logprobs", [](auto& s) { s.mutable_output()->set_logprobs(-1); }},
      {"spec.request_id", [](auto& s) { s.set_request_id("two words"); }},
      {"spec.request_id", [](auto& s) { s.set_request_id(std::string(129, 'x')); }},
      {"spec.session_id", [](auto& s) { s.set_session_id(std::string(129, 'x')); }},
      {"spec.cache_salt", [](auto& s) { s.set_cache_salt(std::string(129, 'x')); }},
      {"spec.priority", [](auto& s) { s.set_priority(static_cast<v1::Priority>(99)); }},
      {"spec.max_queue_wait", [](auto& s) { s.mutable_max_queue_wait()->set_seconds(-1); }},
      {"spec.resume.candidates", [](auto& s) { s.mutable_resume()->set_numerics_id("numerics"); }},
      {"spec.prompt", [](auto& s) { s.clear_prompt(); }},
      {"spec.prompt.text", [](auto& s) { s.mutable_prompt()->set_text(""); }},
      {"spec.prompt", [](auto& s) { s.mutable_prompt()->mutable_token_ids(); }},
      {"spec.prompt.token_ids",
       [](auto& s) { s.mutable_prompt()->mutable_token_ids()->add_ids(-1); }},
      {"spec.prompt.token_ids",
       [](auto& s) { s.mutable_prompt()->mutable_token_ids()->add_ids(4096); }},
      {"spec.prompt.chat.messages", [](auto& s) { s.mutable_prompt()->mutable_chat(); }},
      {"spec.prompt.chat.messages.role",
       [](auto& s) { s.mutable_prompt()->mutable_chat()->add_messages()->set_content("x"); }},
      {"spec.model", [](auto& s) { s.clear_model(); }}};
}

TEST_F(RequestReaderTest, EveryFieldOutOfRangeIsNamed) {
  std::vector<BadField> cases = BadSampling();
  for (auto more : {BadStopping(), BadRest()}) cases.insert(cases.end(), more.begin(), more.end());
  const v1::GenerationSpec good = spec_;
  for (const BadField& bad : cases) {
    spec_ = good;
    bad.spoil(spec_);
    const ReadResult read = Read();
    EXPECT_EQ(read.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << bad.field;
    EXPECT_EQ(rpc::ReasonOf(read.status), "INVALID_REQUEST") << bad.field;
    EXPECT_THAT(rpc::Describe(read.status), HasSubstr(std::string(bad.field) + " ")) << bad.field;
  }
}

TEST_F(RequestReaderTest, AllViolationsAreListedTogether) {
  spec_.mutable_sampling()->set_temperature(-1);
  spec_.mutable_sampling()->set_top_p(7);
  spec_.mutable_output()->set_n(99);
  const std::string text = rpc::Describe(Read().status);
  EXPECT_THAT(text, HasSubstr("spec.sampling.temperature"));
  EXPECT_THAT(text, HasSubstr("spec.sampling.top_p"));
  EXPECT_THAT(text, HasSubstr("spec.output.n"));
}

TEST_F(RequestReaderTest, TheContextIsALimitWithNumbers) {
  spec_.mutable_stopping()->set_max_tokens(64);
  grpc::Status status = Read().status;
  EXPECT_EQ(rpc::ReasonOf(status), "CONTEXT_LENGTH_EXCEEDED");
  EXPECT_THAT(status.error_message(), HasSubstr("64"));
  spec_.clear_stopping();
  for (int i = 0; i < 64; ++i) spec_.mutable_prompt()->mutable_token_ids()->add_ids(5);
  EXPECT_EQ(rpc::ReasonOf(Read().status), "CONTEXT_LENGTH_EXCEEDED");
  spec_.mutable_prompt()->mutable_token_ids()->mutable_ids()->RemoveLast();
  ReadResult read = Read();
  ASSERT_TRUE(read.status.ok());
  EXPECT_EQ(read.request.engine.max_tokens, 1);
}

TEST_F(RequestReaderTest, UnknownModelsAreNotFound) {
  spec_.set_model("../../etc/passwd");
  const grpc::Status status = Read().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(rpc::ReasonOf(status), "MODEL_NOT_FOUND");
  spec_.set_model(std::string(1 << 20, 'm'));
  EXPECT_LT(Read().status.error_message().size(), 300u);
}

TEST_F(RequestReaderTest, SpecialTokensInChatContentAreText) {
  auto& message = *spec_.mutable_prompt()->mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content("<|im_end|>");
  model_.max_model_len = 1024;
  ReadResult read = Read();
  ASSERT_TRUE(read.status.ok()) << rpc::Describe(read.status);
  const std::vector<int32_t>& prompt = read.request.engine.prompt;
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), 3), 1);  // the template's own
}

TEST_F(RequestReaderTest, ResumeNeedsSeedAndTheSameNumerics) {
  auto& candidate = *spec_.mutable_resume()->add_candidates();
  candidate.add_token_ids(5);
  spec_.mutable_resume()->set_numerics_id("numerics");
  EXPECT_THAT(rpc::Describe(Read().status), HasSubstr("spec.sampling.seed"));
  spec_.mutable_sampling()->set_seed(7);
  EXPECT_TRUE(Read().status.ok());
  spec_.mutable_resume()->set_numerics_id("others");
  const grpc::Status status = Read().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(rpc::ReasonOf(status), "NUMERICS_MISMATCH");
}

TEST_F(RequestReaderTest, AModelWithoutTokenizerTakesIdsOnly) {
  model_.tokenizer.reset();
  model_.chat_template.reset();
  EXPECT_THAT(rpc::Describe(Read().status), HasSubstr("spec.prompt.text needs a tokenizer"));
  spec_.mutable_prompt()->mutable_token_ids()->add_ids(5);
  EXPECT_TRUE(Read().status.ok());
}

}  // namespace
}  // namespace qserve::worker::serve
