// Every way in which a generation ends other than by itself: deadlines, full queues, cancellation
// and disconnection at each phase, abort, drain, a failed step. Afterwards nothing may be held.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel_posix.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/integration/edge_client.h"
#include "tests/integration/edge_replica.h"

namespace qserve::integration {
namespace {

ReplicaOptions OneSlot() {
  ReplicaOptions options;
  options.executor.limits.slots = 1;
  return options;
}

TEST(EdgeEnding, TheDeadlineReturnsWhatThereIs) {
  ReplicaOptions options;
  options.fake_clock = true;
  TestReplica replica(options);
  const auto channel = Connect(replica.address());
  replica.gate().Close();
  LiveStream stream(channel, Spec(1000));
  replica.gate().Let(8);
  ASSERT_TRUE(stream.ReadTokens(3));
  replica.fake_clock().Advance(std::chrono::seconds(200));
  replica.gate().Open();
  const Outcome& outcome = stream.End();
  ExpectWhole(outcome);
  EXPECT_EQ(outcome.Finish(), v1::FINISH_REASON_DEADLINE);
  EXPECT_LT(outcome.Ids().size(), 1000u);
  EXPECT_TRUE(replica.ComesToRest());

  // Unary, stopped by its own deadline while it runs.
  replica.gate().Close();
  std::thread passes([&replica] {
    EXPECT_TRUE(replica.WaitsForRunning(1));
    const int64_t before = replica.engine().Stats().generated_tokens;
    replica.gate().Let(5);
    EXPECT_TRUE(Eventually([&] { return replica.engine().Stats().generated_tokens > before; }));
    replica.fake_clock().Advance(std::chrono::seconds(200));
    replica.gate().Open();
  });
  const Answer answer = Generate(channel, Spec(1000));
  passes.join();
  ASSERT_TRUE(answer.status.ok()) << rpc::Describe(answer.status);
  EXPECT_EQ(answer.response.candidates(0).finish_reason(), v1::FINISH_REASON_DEADLINE);
  EXPECT_EQ(answer.response.usage().output_tokens(),
            answer.response.candidates(0).token_ids_size());
  EXPECT_TRUE(replica.ComesToRest());
}

TEST(EdgeEnding, ADeadlineThatIsPastOrNearIsAnsweredAndForgotten) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  const auto stub = v1::InferenceService::NewStub(channel);
  for (const int milliseconds : {-1000, 0, 1, 2, 5, 10}) {
    for (int i = 0; i < 20; ++i) {
      v1::GenerateRequest request;
      *request.mutable_spec() = Spec(3000);
      v1::GenerateResponse response;
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() +
                           std::chrono::milliseconds(milliseconds));
      const grpc::Status status = stub->Generate(&context, request, &response);
      EXPECT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ||
                  status.error_code() == grpc::StatusCode::CANCELLED)
          << rpc::Describe(status);
    }
  }
  EXPECT_TRUE(replica.ComesToRest());
  ExpectWhole(Stream(channel, Spec(10)));
}

TEST(EdgeEnding, WhatDoesNotStartInTimeIsGivenUp) {
  ReplicaOptions options = OneSlot();
  options.fake_clock = true;
  TestReplica replica(options);
  const auto channel = Connect(replica.address());
  replica.gate().Close();
  LiveStream running(channel, Spec(3000));
  ASSERT_TRUE(replica.WaitsForRunning(1));
  v1::GenerationSpec spec = Spec(10);
  spec.mutable_max_queue_wait()->set_seconds(5);
  LiveStream waiting(channel, spec);
  ASSERT_TRUE(replica.WaitsForWaiting(1));
  replica.fake_clock().Advance(std::chrono::seconds(6));
  replica.gate().Let(10);
  const grpc::Status status = waiting.End().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kQueueTimeout);
  EXPECT_TRUE(rpc::RetryDelayOf(status).has_value());
  EXPECT_EQ(waiting.context().GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  EXPECT_TRUE(waiting.so_far().chunks.empty());
  replica.gate().Open();
  ExpectWhole(running.End());
}

TEST(EdgeEnding, AFullQueueRefusesAtOnceWithAHint) {
  ReplicaOptions options = OneSlot();
  options.engine.max_queue = 2;
  TestReplica replica(options);
  const auto channel = Connect(replica.address());
  replica.gate().Close();
  LiveStream running(channel, Spec(20));
  ASSERT_TRUE(replica.WaitsForRunning(1));
  LiveStream second(channel, Spec(20, 8, 1));
  LiveStream third(channel, Spec(20, 8, 2));
  ASSERT_TRUE(replica.WaitsForWaiting(2));
  LiveStream refused(channel, Spec(20, 8, 3));
  const grpc::Status status = refused.End().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kQueueFull);
  EXPECT_TRUE(rpc::RetryDelayOf(status).has_value());
  EXPECT_EQ(refused.context().GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  EXPECT_EQ(rpc::ReasonOf(Generate(channel, Spec(20)).status), rpc::kQueueFull);
  replica.gate().Open();
  ExpectWhole(running.End());
  ExpectWhole(second.End());
  ExpectWhole(third.End());
}

// A phase of a request, and a request that is brought there.
struct Phase {
  const char* name;
  int32_t prompt_tokens;
  int64_t steps;       // let through before the client goes
  size_t tokens_read;  // and tokens it has read by then
  bool queued;         // behind another one
};
constexpr Phase kPhases[] = {{"queued", 8, 0, 0, true},
                             {"prefill", 2000, 3, 0, false},
                             {"first token", 8, 2, 1, false},
                             {"decode", 8, 40, 20, false},
                             {"last token", 8, 64, 49, false}};

// Brings a request to each phase, lets `go` end the client's side and looks for leftovers.
template <class Begin>
void LeaveAtEachPhase(Begin begin) {
  for (const Phase& phase : kPhases) {
    SCOPED_TRACE(phase.name);
    ReplicaOptions options;
    if (phase.queued) options.executor.limits.slots = 1;
    options.engine.max_batched_tokens = 64;  // the long prompt takes many steps
    TestReplica replica(options);
    const auto others = Connect(replica.address());
    replica.gate().Close();
    std::unique_ptr<LiveStream> ahead;
    if (phase.queued) {
      ahead = std::make_unique<LiveStream>(others, Spec(3000, 8, 1));
      ASSERT_TRUE(replica.WaitsForRunning(1));
    }
    v1::GenerationSpec spec = Spec(50, phase.prompt_tokens);
    spec.mutable_output()->set_n(2);
    begin(replica, spec, [&](LiveStream& stream) {
      if (phase.queued) {
        EXPECT_TRUE(replica.WaitsForWaiting(1));
      } else {
        EXPECT_TRUE(Eventually([&] { return replica.engine().Stats().running > 0; }));
      }
      replica.gate().Let(phase.steps);
      EXPECT_TRUE(stream.ReadTokens(phase.tokens_read));
    });
    // Steps are needed for the engine to notice, and a few must do.
    EXPECT_TRUE(Eventually([&] {
      replica.gate().Let(1);
      return phase.queued ? replica.engine().Stats().waiting == 0 : replica.AtRest();
    }));
    if (ahead != nullptr) {
      ahead->Cancel();
      replica.gate().Open();
      EXPECT_TRUE(replica.ComesToRest());
    }
    replica.gate().Open();
    ExpectWhole(Stream(others, Spec(5)));
  }
}

TEST(EdgeEnding, CancellationFreesEverythingAtEachPhase) {
  LeaveAtEachPhase([](TestReplica& replica, const v1::GenerationSpec& spec, const auto& bring) {
    LiveStream stream(Connect(replica.address()), spec);
    bring(stream);
    stream.Cancel();
    const grpc::StatusCode code = stream.End().status.error_code();
    EXPECT_TRUE(code == grpc::StatusCode::CANCELLED || code == grpc::StatusCode::OK);
  });
}

TEST(EdgeEnding, AConnectionThatBreaksFreesEverythingAtEachPhase) {
  LeaveAtEachPhase([](TestReplica& replica, const v1::GenerationSpec& spec, const auto& bring) {
    const int socket_fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(replica.port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(socket_fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    fcntl(socket_fd, F_SETFL, O_NONBLOCK);
    const int ours = dup(socket_fd);
    {
      LiveStream stream(grpc::CreateInsecureChannelFromFd("replica", socket_fd), spec);
      bring(stream);
      shutdown(ours, SHUT_RDWR);
      // At the last token everything may have arrived before.
      const grpc::StatusCode code = stream.End().status.error_code();
      EXPECT_TRUE(code == grpc::StatusCode::UNAVAILABLE || code == grpc::StatusCode::OK);
    }
    close(ours);
  });
}

TEST(EdgeEnding, ManyClientsThatLeaveAtRandomLeaveNothingBehind) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  for (int round = 0; round < 20; ++round) {
    std::vector<std::unique_ptr<LiveStream>> streams;
    for (int i = 0; i < 16; ++i) {
      streams.push_back(std::make_unique<LiveStream>(channel, Spec(400, 8 + 20 * i, i)));
    }
    for (size_t i = 0; i < streams.size(); ++i) {
      if (i % 4 != 0) streams[i]->ReadTokens((i * 7 + static_cast<size_t>(round)) % 30);
      streams[i]->Cancel();
    }
  }
  EXPECT_TRUE(replica.ComesToRest());
}

TEST(EdgeEnding, AbortEndsTheNamedAsCancelled) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  replica.gate().Close();
  v1::GenerationSpec spec = Spec(1000);
  spec.set_request_id("to-be-aborted");
  LiveStream doomed(channel, spec);
  spec.set_request_id("spared");
  spec.mutable_stopping()->set_max_tokens(30);
  LiveStream spared(channel, spec);
  ASSERT_TRUE(Eventually([&] {
    const auto stats = replica.engine().Stats();
    return stats.running + stats.waiting == 2;
  }));
  replica.gate().Let(5);
  ASSERT_TRUE(doomed.ReadTokens(2));
  const auto stub = v1::WorkerService::NewStub(channel);
  v1::AbortRequest request;
  request.add_request_ids("to-be-aborted");
  request.add_request_ids("never-heard-of");
  v1::AbortResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub->Abort(&context, request, &response).ok());
  EXPECT_EQ(response.aborted(), 1);
  replica.gate().Open();
  ExpectWhole(doomed.End());
  EXPECT_EQ(doomed.so_far().Finish(), v1::FINISH_REASON_CANCELLED);
  ExpectWhole(spared.End());
  EXPECT_EQ(spared.so_far().Finish(), v1::FINISH_REASON_LENGTH);
  EXPECT_TRUE(replica.ComesToRest());
}

TEST(EdgeEnding, DrainRefusesTheNewAndFinishesTheOld) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  replica.gate().Close();
  LiveStream old(channel, Spec(100));
  ASSERT_TRUE(replica.WaitsForRunning(1));
  const auto stub = v1::WorkerService::NewStub(channel);
  grpc::ClientContext context;
  v1::DrainResponse response;
  ASSERT_TRUE(stub->Drain(&context, v1::DrainRequest(), &response).ok());
  const grpc::Status status = Stream(channel, Spec(10)).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kDraining);
  EXPECT_TRUE(rpc::RetryDelayOf(status).has_value());
  EXPECT_TRUE(WatchUntil(channel, [](const auto& report) { return report.draining(); }));
  EXPECT_TRUE(Eventually([&] { return HealthOf(channel, kInferenceName) == Health::kNotServing; }));
  EXPECT_EQ(HealthOf(channel, ""), Health::kServing);
  EXPECT_FALSE(replica.server().Idle());
  replica.gate().Open();
  ExpectWhole(old.End());
  EXPECT_EQ(old.so_far().Ids().size(), 100u);
  EXPECT_TRUE(replica.ComesToRest());
}

TEST(EdgeEnding, WhatAnEndingReplicaDoesNotFinishIsToGoOnElsewhere) {
  TestReplica replica;
  const auto channel = Connect(replica.address());
  replica.gate().Close();
  v1::GenerationSpec spec = Spec(1000);
  spec.mutable_output()->set_n(2);
  LiveStream stream(channel, spec);
  ASSERT_TRUE(Eventually([&] { return replica.engine().Stats().running > 0; }));
  Answer answer;
  std::thread unary([&] { answer = Generate(channel, Spec(1000, 8, 1)); });
  LiveStream not_begun(channel, Spec(1000, 8, 2));
  EXPECT_TRUE(Eventually([&] {
    return replica.metrics().Text().find("\nqserve_requests_total 3") != std::string::npos;
  }));
  replica.gate().Let(6);
  EXPECT_TRUE(stream.ReadTokens(2));
  replica.server().Shutdown(kPatience);
  unary.join();
  for (const grpc::Status& status : {stream.End().status, answer.status, not_begun.End().status}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << rpc::Describe(status);
    EXPECT_EQ(rpc::ReasonOf(status), rpc::kDraining);
    EXPECT_TRUE(rpc::RetryDelayOf(status).has_value());
  }
  const Outcome& outcome = stream.so_far();
  EXPECT_EQ(MetadataOf(outcome.status, "tokens_emitted"),
            std::to_string(outcome.Ids(0).size() + outcome.Ids(1).size()));
  for (const int32_t candidate : {0, 1}) {
    EXPECT_EQ(outcome.Finish(candidate), v1::FINISH_REASON_UNSPECIFIED);
  }
  replica.gate().Open();
  EXPECT_TRUE(replica.ComesToRest());
}

TEST(EdgeEnding, AFailedStepFailsEveryOpenRequestAndTheHealth) {
  ReplicaOptions options;
  options.executor.fail_await_of_step = 20;
  TestReplica replica(options);
  const auto channel = Connect(replica.address());
  replica.gate().Close();
  std::vector<std::unique_ptr<LiveStream>> streams;
  for (int i = 0; i < 3; ++i) {
    streams.push_back(std::make_unique<LiveStream>(channel, Spec(1000, 8, i)));
  }
  ASSERT_TRUE(Eventually([&] {
    const auto stats = replica.engine().Stats();
    return stats.running + stats.waiting == 3;
  }));
  replica.gate().Open();
  for (const auto& stream : streams) {
    const grpc::Status status = stream->End().status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(rpc::ReasonOf(status), rpc::kReplicaFailed);
  }
  const Answer answer = Generate(channel, Spec(10));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(rpc::ReasonOf(answer.status), rpc::kReplicaFailed);
  EXPECT_TRUE(Eventually([&] { return HealthOf(channel, kInferenceName) == Health::kNotServing; }));
  EXPECT_EQ(HealthOf(channel, ""), Health::kNotServing);
  EXPECT_TRUE(Eventually([&] { return replica.server().Idle(); }));
}

}  // namespace
}  // namespace qserve::integration
