// Small calls through a router whose replicas break: they change nothing, so another replica
// answers, three are tried at most, and the client's deadline ends it all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/integration/edge_broken_replica.h"
#include "tests/integration/router_fixture.h"

namespace qserve::integration {
namespace {

class RouterSmallCalls : public RouterTest {
 protected:
  grpc::Status CountTokens(v1::CountTokensResponse& response,
                           Duration patience = std::chrono::seconds(60)) {
    v1::CountTokensRequest request;
    request.set_model("demo");
    request.mutable_prompt()->set_text("The quick brown fox");
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + patience);
    return v1::InferenceService::NewStub(channel_)->CountTokens(&context, request, &response);
  }
};

TEST_F(RouterSmallCalls, AreAnsweredByAnotherReplicaWhenOneIsUnavailable) {
  BrokenReplica broken;
  Start({{}}, {broken.address()});
  const auto stub = v1::InferenceService::NewStub(channel_);
  // Ties go to the one picked least: of every two calls one begins at the broken replica.
  for (int i = 0; i < 4; ++i) {
    v1::CountTokensResponse count;
    const grpc::Status status = CountTokens(count);
    ASSERT_TRUE(status.ok()) << rpc::Describe(status);
    EXPECT_GT(count.token_count(), 0);
    v1::TokenizeRequest tokenize;
    tokenize.set_model("demo");
    tokenize.set_text("Hello there");
    v1::TokenizeResponse tokens;
    grpc::ClientContext tokenize_context;
    ASSERT_TRUE(stub->Tokenize(&tokenize_context, tokenize, &tokens).ok());
    v1::DetokenizeRequest detokenize;
    detokenize.set_model("demo");
    *detokenize.mutable_token_ids() = tokens.token_ids();
    detokenize.set_skip_special_tokens(true);
    v1::DetokenizeResponse text;
    grpc::ClientContext detokenize_context;
    ASSERT_TRUE(stub->Detokenize(&detokenize_context, detokenize, &text).ok());
    EXPECT_EQ(text.text(), "Hello there");
  }
  EXPECT_GE(broken.asked(), 4);
  EXPECT_EQ(Metric("qserve_router_retries_total"), static_cast<double>(broken.asked()));
  EXPECT_TRUE(Eventually([&] { return Metric("qserve_router_open_calls") == 0; }));
}

TEST_F(RouterSmallCalls, MoveWhenAReplicaDiesBeforeItAnswers) {
  BrokenReplica dying(true);
  Relay relay(dying.port());
  Start({{}}, {relay.address()});
  // Whichever of the two is asked first, the dying one has one of the two calls.
  v1::CountTokensResponse first;
  v1::CountTokensResponse second;
  grpc::Status statuses[2];
  std::thread one([&] { statuses[0] = CountTokens(first); });
  std::thread two([&] { statuses[1] = CountTokens(second); });
  EXPECT_TRUE(Eventually([&] { return dying.asked() > 0; }));
  relay.Cut();
  one.join();
  two.join();
  for (const grpc::Status& status : statuses) EXPECT_TRUE(status.ok()) << rpc::Describe(status);
  EXPECT_EQ(first.token_count(), second.token_count());
  EXPECT_GT(first.token_count(), 0);
}

TEST_F(RouterSmallCalls, TryNoMoreThanThreeReplicas) {
  BrokenReplica broken[4];
  Start({}, {broken[0].address(), broken[1].address(), broken[2].address(), broken[3].address()});
  v1::CountTokensResponse response;
  const grpc::Status status = CountTokens(response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kNoReadyReplica);
  int64_t asked = 0;
  for (const BrokenReplica& one : broken) asked += one.asked();
  EXPECT_EQ(asked, 3);
}

TEST_F(RouterSmallCalls, EndWithTheClientsDeadline) {
  BrokenReplica silent(true);
  Start({}, {silent.address()});
  v1::CountTokensResponse response;
  EXPECT_EQ(CountTokens(response, std::chrono::milliseconds(300)).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return Metric("qserve_router_open_calls") == 0; }));
}

TEST_F(RouterSmallCalls, ThatAreMistakenAreRefusedInTheirOwnWords) {
  Start({{}});
  const std::string service = std::string("/") + kInferenceName + "/";
  const grpc::Status nameless = CallRaw(channel_, service + "CountTokens", "");
  EXPECT_EQ(rpc::Describe(nameless), "INVALID_REQUEST: model is required");
  EXPECT_EQ(rpc::ReasonOf(CallRaw(channel_, service + "Tokenize", "\x0a\x03xyz")),
            rpc::kModelNotFound);
}

}  // namespace
}  // namespace qserve::integration
