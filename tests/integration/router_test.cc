// A router over undisturbed replicas: what clients see is what a replica would have said.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/integration/router_fixture.h"

namespace qserve::integration {
namespace {

TEST_F(RouterTest, IsTransparent) {
  Start({{}, {}});
  v1::GenerationSpec spec = Spec(60);
  spec.mutable_output()->set_n(3);
  spec.mutable_output()->set_logprobs(1);
  spec.set_request_id("mine");
  const Outcome direct = Undisturbed(spec);
  const Outcome routed = Stream(channel_, spec);
  ExpectWhole(routed, 3);
  ExpectSame(routed, direct, 3);
  EXPECT_EQ(routed.chunks.front().info().request_id(), "mine");
  EXPECT_EQ(routed.chunks.front().info().seed(), 7u);
  EXPECT_EQ(routed.chunks.front().info().numerics_id(), "numerics-a");
  const Answer answer = Generate(channel_, spec);
  ASSERT_TRUE(answer.status.ok()) << rpc::Describe(answer.status);
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_THAT(answer.response.candidates(i).token_ids(),
                testing::ElementsAreArray(direct.Ids(i)));
    EXPECT_EQ(answer.response.candidates(i).text(), direct.Text(i));
    EXPECT_EQ(answer.response.candidates(i).logprobs_size(), 60);
  }
  spec.mutable_sampling()->set_top_p(1.5f);
  const grpc::Status refused = Stream(channel_, spec).status;
  EXPECT_EQ(rpc::Describe(refused), rpc::Describe(Undisturbed(spec).status));
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(
      CallRaw(channel_, std::string("/") + kInferenceName + "/Generate", "\x0b\x0b").error_code(),
      grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(RouterTest, ForwardsSmallCallsAndMergesModels) {
  ReplicaOptions other;
  other.numerics_id = "numerics-b";
  Start({{}, other});
  const auto stub = v1::InferenceService::NewStub(channel_);
  v1::TokenizeRequest tokenize;
  tokenize.set_model("demo");
  tokenize.set_text("Hello there");
  v1::TokenizeResponse tokens;
  grpc::ClientContext tokenize_context;
  ASSERT_TRUE(stub->Tokenize(&tokenize_context, tokenize, &tokens).ok());
  EXPECT_THAT(tokens.token_ids(),
              testing::ElementsAreArray(*replicas_[0]->tokenizer().Encode("Hello there")));
  v1::DetokenizeRequest detokenize;
  detokenize.set_model("demo");
  *detokenize.mutable_token_ids() = tokens.token_ids();
  detokenize.set_skip_special_tokens(true);
  v1::DetokenizeResponse text;
  grpc::ClientContext detokenize_context;
  ASSERT_TRUE(stub->Detokenize(&detokenize_context, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "Hello there");
  v1::ListModelsResponse models;
  grpc::ClientContext models_context;
  ASSERT_TRUE(stub->ListModels(&models_context, v1::ListModelsRequest(), &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).name(), "demo");
  EXPECT_THAT(models.models(0).numerics_ids(),
              testing::UnorderedElementsAre("numerics-a", "numerics-b"));
  // Health follows the replicas' reports within a turn of its own thread.
  EXPECT_TRUE(
      Eventually([this] { return HealthOf(channel_, kInferenceName) == Health::kServing; }));
}

TEST_F(RouterTest, SpreadsOverTheLeastLoaded) {
  Start({{}, {}});
  CloseGates();
  std::vector<std::unique_ptr<LiveStream>> streams;
  for (int32_t i = 0; i < 8; ++i) {
    streams.push_back(std::make_unique<LiveStream>(channel_, Spec(20, 8, i)));
    EXPECT_TRUE(Eventually([&] {
      return replicas_[0]->server().Idle() + replicas_[1]->server().Idle() <= (i == 0 ? 1 : 0);
    }));
  }
  EXPECT_TRUE(Eventually([&] {
    const auto open = [](const TestReplica& replica) {
      const auto stats = const_cast<TestReplica&>(replica).engine().Stats();
      return stats.running + stats.waiting;
    };
    return open(*replicas_[0]) == 4 && open(*replicas_[1]) == 4;
  }));
  OpenGates();
  for (const auto& stream : streams) ExpectWhole(stream->End());
}

TEST_F(RouterTest, UnknownModelsAreNotFound) {
  Start({{}});
  v1::GenerationSpec spec = Spec(5);
  spec.set_model("unheard-of");
  for (const grpc::Status& status :
       {Stream(channel_, spec).status, Generate(channel_, spec).status}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
    EXPECT_EQ(rpc::ReasonOf(status), rpc::kModelNotFound);
  }
}

TEST_F(RouterTest, WithoutAReplicaEverythingIsUnavailableForNow) {
  Start({{}});
  relays_[0]->Cut();
  ASSERT_TRUE(WaitsForReady(0));
  for (const grpc::Status& status :
       {Stream(channel_, Spec(5)).status, Generate(channel_, Spec(5)).status}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(rpc::ReasonOf(status), rpc::kNoReadyReplica);
    EXPECT_TRUE(rpc::RetryDelayOf(status).has_value());
  }
  EXPECT_TRUE(
      Eventually([&] { return HealthOf(channel_, kInferenceName) == Health::kNotServing; }));
  EXPECT_EQ(HealthOf(channel_, ""), Health::kServing);
}

TEST_F(RouterTest, AFullQueueIsToldAsItIs) {
  ReplicaOptions full;
  full.executor.limits.slots = 1;
  full.engine.max_queue = 1;
  Start({full});
  CloseGates();
  LiveStream running(channel_, Spec(20));
  ASSERT_TRUE(replicas_[0]->WaitsForRunning(1));
  LiveStream waiting(channel_, Spec(20, 8, 1));
  ASSERT_TRUE(replicas_[0]->WaitsForWaiting(1));
  LiveStream refused(channel_, Spec(20, 8, 2));
  EXPECT_EQ(refused.End().status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(rpc::ReasonOf(refused.so_far().status), rpc::kQueueFull);
  EXPECT_EQ(refused.context().GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  EXPECT_EQ(rpc::ReasonOf(Generate(channel_, Spec(20)).status), rpc::kQueueFull);
  OpenGates();
  ExpectWhole(running.End());
  ExpectWhole(waiting.End());
}

TEST_F(RouterTest, ACancelledStreamIsCancelledAtItsReplica) {
  Start({{}});
  CloseGates();
  {
    LiveStream stream(channel_, Spec(3000));
    ASSERT_TRUE(replicas_[0]->WaitsForRunning(1));
    replicas_[0]->gate().Let(10);
    ASSERT_TRUE(stream.ReadTokens(3));
    stream.Cancel();
    EXPECT_EQ(stream.End().status.error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(Eventually([&] {
    replicas_[0]->gate().Let(1);
    return replicas_[0]->AtRest();
  }));
  EXPECT_TRUE(Eventually([&] { return Metric("qserve_router_open_calls") == 0; }));
}

TEST_F(RouterTest, TheDeadlineGoesAlong) {
  ReplicaOptions options;
  options.fake_clock = true;
  Start({options});
  CloseGates();
  LiveStream stream(channel_, Spec(3000));
  replicas_[0]->gate().Let(8);
  ASSERT_TRUE(stream.ReadTokens(3));
  replicas_[0]->fake_clock().Advance(std::chrono::seconds(200));
  OpenGates();
  ExpectWhole(stream.End());
  EXPECT_EQ(stream.so_far().Finish(), v1::FINISH_REASON_DEADLINE);
}

TEST_F(RouterTest, ASlowReaderHoldsUpNobody) {
  Start({{}});
  v1::GenerationSpec spec = Spec(1000);
  spec.mutable_output()->set_logprobs(20);
  std::vector<std::unique_ptr<LiveStream>> slow;
  for (int i = 0; i < 3; ++i) {
    slow.push_back(std::make_unique<LiveStream>(
        Connect("127.0.0.1:" + std::to_string(router_->port())), spec));
  }
  ExpectWhole(Stream(channel_, Spec(300, 20, 1)));
  EXPECT_TRUE(Eventually([&] { return replicas_[0]->engine().Idle(); }));
  const Outcome direct = Undisturbed(spec);
  for (const auto& stream : slow) {
    ExpectWhole(stream->End());
    ExpectSame(stream->so_far(), direct);
    EXPECT_LT(stream->so_far().chunks.size(), 900u);
  }
}

TEST_F(RouterTest, ADrainingReplicaGetsNothingNew) {
  Start({{}, {}});
  CloseGates();
  LiveStream old(channel_, Spec(30));
  const size_t busy = BusyReplica();
  replicas_[busy]->server().StartDraining();
  ASSERT_TRUE(WaitsForReady(1));
  OpenGates();
  for (int32_t i = 0; i < 6; ++i) ExpectWhole(Stream(channel_, Spec(5, 8, i)));
  ExpectWhole(old.End());
  EXPECT_EQ(replicas_[busy]->engine().Stats().requests_finished, 1);
  EXPECT_EQ(Metric("qserve_router_resumes_total"), 0);
}

TEST_F(RouterTest, DrainsItself) {
  Start({{}});
  CloseGates();
  LiveStream old(channel_, Spec(50));
  ASSERT_TRUE(replicas_[0]->WaitsForRunning(1));
  std::thread drain([this] { router_->DrainAndStop(kPatience); });
  grpc::Status refused;
  EXPECT_TRUE(Eventually([&] {
    v1::GenerationSpec spec = Spec(1);
    spec.set_model("nobody serves this");
    refused = Generate(channel_, spec).status;
    return rpc::ReasonOf(refused) == rpc::kDraining;
  }));
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  OpenGates();
  ExpectWhole(old.End());
  drain.join();
}

TEST_F(RouterTest, TellsWhatItsOwnEndCutsShort) {
  Start({{}});
  CloseGates();
  LiveStream stream(channel_, Spec(1000));
  ASSERT_TRUE(replicas_[0]->WaitsForRunning(1));
  Answer answer;
  std::thread unary([&] { answer = Generate(channel_, Spec(1000, 8, 1)); });
  EXPECT_TRUE(Eventually([&] { return Metric("qserve_router_open_calls") == 2; }));
  replicas_[0]->gate().Let(10);
  EXPECT_TRUE(stream.ReadTokens(3));
  router_->DrainAndStop(Duration::zero());
  unary.join();
  for (const grpc::Status& status : {stream.End().status, answer.status}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << rpc::Describe(status);
    EXPECT_EQ(rpc::ReasonOf(status), rpc::kDraining);
    EXPECT_TRUE(rpc::RetryDelayOf(status).has_value());
  }
  EXPECT_EQ(MetadataOf(stream.so_far().status, "tokens_emitted"),
            std::to_string(stream.so_far().Ids().size()));
  OpenGates();
  EXPECT_TRUE(replicas_[0]->ComesToRest());
}

TEST(RouterStart, RefusesOptionsThatCannotWork) {
  const SteadyClock clock;
  const auto start = [&clock](router::RouterOptions options) {
    Metrics metrics;
    return std::string(router::Router::Start(options, clock, metrics).status().message());
  };
  using testing::HasSubstr;
  EXPECT_THAT(start({.listen = "127.0.0.1:0"}), HasSubstr("--workers"));
  EXPECT_THAT(start({.listen = "256.0.0.1:1", .workers = {"h:1"}}), HasSubstr("256.0.0.1:1"));
  EXPECT_THAT(start({.listen = "127.0.0.1:0", .workers = {"nowhere"}}), HasSubstr("nowhere"));
  EXPECT_THAT(start({.listen = "127.0.0.1:0", .workers = {"h:1", "h:1"}}), HasSubstr("twice"));
  EXPECT_THAT(start({.listen = "127.0.0.1:0", .workers = {"h:1"}, .policy = "best"}),
              HasSubstr("least-loaded"));
}

}  // namespace
}  // namespace qserve::integration
