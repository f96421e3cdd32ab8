// What a client sees of a replica over real gRPC: chunks, text, stop strings, log-probabilities,
// resumption, slow readers, and what operators see.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "tests/integration/edge_client.h"
#include "tests/integration/edge_replica.h"
#include "worker/text/stream_decoder.h"

namespace qserve::integration {
namespace {

// The text that each id completes, as a stream decoder of ours gives it.
std::vector<std::string> Pieces(const worker::text::Tokenizer& tokenizer,
                                const v1::GenerationSpec& spec, const std::vector<int32_t>& ids) {
  const auto& prompt = spec.prompt().token_ids().ids();
  const std::vector<int32_t> before(prompt.begin(), prompt.end());
  worker::text::StreamDecoder decoder(tokenizer, before,
                                      {.skip_special_tokens = true, .ignore_unknown_ids = true});
  std::vector<std::string> pieces;
  for (const int32_t id : ids) pieces.push_back(*decoder.Push(id));
  pieces.push_back(*decoder.Flush());
  return pieces;
}

std::string Join(const std::vector<std::string>& pieces) {
  std::string text;
  for (const std::string& piece : pieces) text += piece;
  return text;
}

TEST(EdgeServer, StreamsNumberedChunksWhoseTextIsThatOfTheirIds) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  for (const int32_t max_tokens : {1, 2, 200}) {
    const v1::GenerationSpec spec = Spec(max_tokens, 8, max_tokens);
    const Outcome outcome = Stream(channel, spec);
    ExpectWhole(outcome);
    EXPECT_EQ(outcome.Ids().size(), static_cast<size_t>(max_tokens));
    EXPECT_EQ(outcome.Finish(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(outcome.usage().prompt_tokens(), 8);
    EXPECT_EQ(outcome.Text(), Join(Pieces(replica.tokenizer(), spec, outcome.Ids())));
    const v1::StreamInfo& info = outcome.chunks.front().info();
    EXPECT_EQ(info.seed(), 7u);
    EXPECT_EQ(info.model(), "demo");
    EXPECT_EQ(info.numerics_id(), "numerics-a");
    EXPECT_FALSE(info.request_id().empty());
  }
  EXPECT_TRUE(replica.ComesToRest());
}

TEST(EdgeServer, UnaryEqualsStream) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  v1::GenerationSpec spec = Spec(60);
  spec.mutable_output()->set_n(3);
  spec.mutable_output()->set_logprobs(2);
  spec.set_request_id("mine-17");
  const Outcome stream = Stream(channel, spec);
  ExpectWhole(stream, 3);
  EXPECT_NE(stream.Ids(0), stream.Ids(1));
  const Answer answer = Generate(channel, spec);
  ASSERT_TRUE(answer.status.ok()) << rpc::Describe(answer.status);
  const v1::GenerateResponse& response = answer.response;
  ASSERT_EQ(response.candidates_size(), 3);
  EXPECT_EQ(response.request_id(), "mine-17");
  EXPECT_EQ(response.seed(), 7u);
  EXPECT_EQ(response.numerics_id(), "numerics-a");
  EXPECT_EQ(response.usage().output_tokens(), 180);
  for (int32_t i = 0; i < 3; ++i) {
    const v1::Candidate& candidate = response.candidates(i);
    EXPECT_EQ(candidate.index(), i);
    EXPECT_THAT(candidate.token_ids(), testing::ElementsAreArray(stream.Ids(i)));
    EXPECT_EQ(candidate.text(), stream.Text(i));
    EXPECT_EQ(candidate.finish_reason(), v1::FINISH_REASON_LENGTH);
    ASSERT_EQ(candidate.logprobs_size(), 60);
    for (int position = 0; position < 60; ++position) {
      EXPECT_EQ(candidate.logprobs(position).token().token_id(), candidate.token_ids(position));
      EXPECT_EQ(candidate.logprobs(position).top_size(), 2);
    }
  }
}

TEST(EdgeServer, LogprobsAreThereOnlyWhenAskedFor) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  v1::GenerationSpec spec = Spec(12);
  for (const auto& chunk : Stream(channel, spec).chunks) EXPECT_EQ(chunk.logprobs_size(), 0);
  for (const int32_t top : {0, 3}) {
    spec.mutable_output()->set_logprobs(top);
    for (const auto& chunk : Stream(channel, spec).chunks) {
      ASSERT_EQ(chunk.logprobs_size(), chunk.token_ids_size());
      for (const auto& position : chunk.logprobs()) EXPECT_EQ(position.top_size(), top);
    }
  }
}

TEST(EdgeServer, ADrawnSeedGivesTheSameTokensWhenGivenBack) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  v1::GenerationSpec spec = Spec(20);
  spec.mutable_sampling()->clear_seed();
  const Outcome first = Stream(channel, spec);
  const Outcome second = Stream(channel, spec);
  EXPECT_NE(first.Ids(), second.Ids());
  spec.mutable_sampling()->set_seed(first.chunks.front().info().seed());
  ExpectSame(Stream(channel, spec), first);
}

TEST(EdgeServer, AnEndTokenEndsAndIsNamed) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  const std::vector<int32_t> ids = Stream(channel, Spec(30)).Ids();
  v1::GenerationSpec spec = Spec(30);
  spec.mutable_stopping()->add_stop_token_ids(ids[11]);
  const Outcome outcome = Stream(channel, spec);
  ExpectWhole(outcome);
  EXPECT_EQ(outcome.Finish(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(outcome.chunks.back().matched_stop().token_id(), ids[11]);
  EXPECT_EQ(outcome.Ids().back(), ids[11]);
}

// Two characters of one token and two of the next: an index of the first, and the string.
std::pair<size_t, std::string> StopAcrossTokens(const std::vector<std::string>& pieces) {
  const auto plain = [](const std::string& text) {
    return text.size() >= 2 &&
           std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  };
  for (size_t i = pieces.size() / 3; i + 1 < pieces.size(); ++i) {
    if (!plain(pieces[i]) || !plain(pieces[i + 1])) continue;
    std::string stop = pieces[i].substr(pieces[i].size() - 2) + pieces[i + 1].substr(0, 2);
    std::string before;
    for (size_t k = 0; k <= i + 1; ++k) before += pieces[k];
    const std::string all_but_last = before.substr(0, before.size() - pieces[i + 1].size());
    if (all_but_last.find(stop) == std::string::npos) return {i, std::move(stop)};
  }
  return {0, ""};
}

TEST(EdgeServer, AStopStringAcrossTokensCountsTheSameInAnyCrowd) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  v1::GenerationSpec spec = Spec(400);
  const std::vector<std::string> pieces =
      Pieces(replica.tokenizer(), spec, Stream(channel, spec).Ids());
  const auto [index, stop] = StopAcrossTokens(pieces);
  ASSERT_FALSE(stop.empty());
  spec.mutable_stopping()->add_stop("a string that never comes");
  spec.mutable_stopping()->add_stop(stop);
  const Outcome alone = Stream(channel, spec);
  ExpectWhole(alone);
  EXPECT_EQ(alone.Finish(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(alone.chunks.back().matched_stop().text(), stop);
  EXPECT_EQ(alone.Ids().size(), index + 2);
  const std::string whole = Join(pieces);
  EXPECT_EQ(alone.Text(), whole.substr(0, whole.find(stop)));

  std::vector<std::unique_ptr<LiveStream>> crowd;
  for (int32_t i = 1; i <= 8; ++i) {
    crowd.push_back(std::make_unique<LiveStream>(channel, Spec(300, 40 * i, i)));
  }
  ExpectSame(Stream(channel, spec), alone);
  // Step by step, each chunk one token.
  replica.gate().Close();
  LiveStream slow(channel, spec);
  std::thread steps([&replica] {
    for (int i = 0; i < 100; ++i) {
      replica.gate().Let(1);
      std::this_thread::yield();
    }
    replica.gate().Open();
  });
  ExpectSame(slow.End(), alone);
  steps.join();
  const Answer answer = Generate(channel, spec);
  ASSERT_TRUE(answer.status.ok());
  EXPECT_EQ(answer.response.candidates(0).text(), alone.Text());
  EXPECT_EQ(answer.response.usage().output_tokens(), alone.usage().output_tokens());
  crowd.clear();
  EXPECT_TRUE(replica.ComesToRest());
}

TEST(EdgeServer, SlowReadersHoldUpNobodyAndGetTheirTokensInFewerChunks) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  v1::GenerationSpec spec = Spec(1000);
  spec.mutable_output()->set_logprobs(20);  // more bytes than flow control lets through unread
  std::vector<std::unique_ptr<LiveStream>> slow;
  for (int i = 0; i < 4; ++i) {
    slow.push_back(std::make_unique<LiveStream>(Connect(replica.address()), spec));
  }
  ExpectWhole(Stream(channel, Spec(300, 20, 1)));
  // The engine finishes with them though nobody has read a byte.
  EXPECT_TRUE(Eventually([&replica] {
    const auto stats = replica.engine().Stats();
    return replica.engine().Idle() && stats.kv_blocks_used == 0;
  }));
  const Outcome prompt_reader = Stream(channel, spec);
  for (const auto& stream : slow) {
    const Outcome& outcome = stream->End();
    ExpectWhole(outcome);
    ExpectSame(outcome, prompt_reader);
    EXPECT_LT(outcome.chunks.size(), 900u);
  }
  EXPECT_TRUE(replica.ComesToRest());
}

TEST(EdgeServer, AStreamGoesOnElsewhereTokenForToken) {
  TestReplica first;
  TestReplica second;
  TestReplica other({.numerics_id = "numerics-b"});
  v1::GenerationSpec spec = Spec(80);
  spec.mutable_output()->set_n(2);
  const Outcome whole = Stream(Connect(first.address()), spec);
  ExpectWhole(whole, 2);
  for (const size_t taken : {size_t{1}, size_t{2}, whole.chunks.size() / 2}) {
    Outcome joined;
    joined.chunks.assign(whole.chunks.begin(),
                         whole.chunks.begin() + static_cast<std::ptrdiff_t>(taken));
    v1::GenerationSpec rest = spec;
    v1::Resume& resume = *rest.mutable_resume();
    resume.set_numerics_id("numerics-a");
    for (int32_t i = 0; i < 2; ++i) {
      v1::ResumeCandidate& candidate = *resume.add_candidates();
      for (const int32_t id : joined.Ids(i)) candidate.add_token_ids(id);
      candidate.set_text_bytes(static_cast<int64_t>(joined.Text(i).size()));
      candidate.set_finished(joined.Finish(i) != v1::FINISH_REASON_UNSPECIFIED);
    }
    const Outcome resumed = Stream(Connect(second.address()), rest);
    ASSERT_TRUE(resumed.status.ok()) << rpc::Describe(resumed.status);
    joined.chunks.insert(joined.chunks.end(), resumed.chunks.begin(), resumed.chunks.end());
    ExpectSame(joined, whole, 2);

    const Outcome refused = Stream(Connect(other.address()), rest);
    EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_EQ(rpc::ReasonOf(refused.status), rpc::kNumericsMismatch);
  }
}

TEST(EdgeServer, ChatAndTextAndIdsAreOnePromptEach) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  v1::GenerationSpec text = Spec(10);
  text.mutable_prompt()->set_text("What does os.path.join do?");
  v1::GenerationSpec ids = Spec(10);
  auto& list = *ids.mutable_prompt()->mutable_token_ids();
  list.clear_ids();
  const std::vector<int32_t> encoded = *replica.tokenizer().Encode(text.prompt().text());
  for (const int32_t id : encoded) list.add_ids(id);
  ExpectSame(Stream(channel, text), Stream(channel, ids));
  v1::GenerationSpec chat = Spec(10);
  v1::ChatMessage& message = *chat.mutable_prompt()->mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content("Hello <|im_end|>");
  const Outcome answer = Stream(channel, chat);
  ExpectWhole(answer);
  grpc::ClientContext context;
  v1::CountTokensRequest count;
  count.set_model("demo");
  *count.mutable_prompt() = chat.prompt();
  v1::CountTokensResponse counted;
  ASSERT_TRUE(v1::InferenceService::NewStub(channel)->CountTokens(&context, count, &counted).ok());
  EXPECT_EQ(counted.token_count(), answer.usage().prompt_tokens());
}

TEST(EdgeServer, StatusHealthAndReflectionTellWhatThereIs) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  replica.gate().Close();
  LiveStream stream(channel, Spec(50));
  int64_t last = 0;
  EXPECT_TRUE(WatchUntil(channel, [&last](const v1::WatchStatusResponse& status) {
    EXPECT_EQ(status.sequence_number(), ++last);
    EXPECT_FALSE(status.epoch().empty());
    EXPECT_THAT(status.models(), testing::ElementsAre("demo"));
    EXPECT_EQ(status.numerics_id(), "numerics-a");
    EXPECT_EQ(status.kv_blocks_total(), 512);
    EXPECT_EQ(status.max_model_len(), 4096);
    EXPECT_EQ(status.tensor_parallel_size(), 1);
    EXPECT_TRUE(status.making_progress());
    EXPECT_FALSE(status.draining());
    return status.running() == 1 && status.kv_blocks_used() > 0;
  }));
  replica.gate().Open();
  ExpectWhole(stream.End());
  EXPECT_TRUE(WatchUntil(channel, [](const v1::WatchStatusResponse& status) {
    return status.running() == 0 && status.generated_tokens() == 50 && status.steps() >= 50;
  }));
  EXPECT_EQ(HealthOf(channel, ""), Health::kServing);
  EXPECT_EQ(HealthOf(channel, kInferenceName), Health::kServing);
  EXPECT_EQ(HealthOf(channel, "unheard.of.Service"), Health::kUnknownService);
  // Reflection's "list services" is the string "*" in field 7.
  std::string services;
  ASSERT_TRUE(CallRaw(channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                      std::string("\x3a\x01*"), &services)
                  .ok());
  for (const char* name : {kInferenceName, "qserve.v1.WorkerService", "grpc.health.v1.Health"}) {
    EXPECT_THAT(services, testing::HasSubstr(name));
  }
  EXPECT_THAT(replica.metrics().Text(), testing::HasSubstr("qserve_generation_tokens_total 50"));
}

}  // namespace
}  // namespace qserve::integration
