// The load generator against a scripted server: how many at a time, what is sent, what is noted.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "bench/load.h"
#include "bench/workload.h"
#include "common/rpc/errors.h"
#include "tests/unit/client/fake_server.h"

namespace qserve::bench {
namespace {

std::vector<RequestRecord> SendLoad(const client::FakeServer& server, const LoadOptions& options,
                                    client::Interrupt& interrupt) {
  const auto connection = client::Connection::Create(server.address(), interrupt);
  EXPECT_TRUE(connection.ok());
  return RunLoad(**connection, options);
}

LoadOptions Options() {
  return {.model = "fake",
          .vocabulary = 1000,
          .requests = 12,
          .concurrency = 3,
          .prompt_length = 5,
          .output_length = 3,
          .timeout_seconds = 60};
}

TEST(Load, ClosedLoopKeepsItsConcurrency) {
  const client::FakeServer server;
  client::Interrupt interrupt;
  const auto records = SendLoad(server, Options(), interrupt);
  ASSERT_EQ(records.size(), 12u);
  for (const RequestRecord& record : records) {
    EXPECT_EQ(record.error, "");
    EXPECT_EQ(record.tokens, 3);
    EXPECT_LE(record.due, record.first_token);
    EXPECT_LE(record.first_token, record.end);
  }
  EXPECT_EQ(server.streams(), 12);
  EXPECT_LE(server.most_at_once(), 3);
  const v1::GenerationSpec spec = server.last_spec();
  EXPECT_EQ(spec.prompt().token_ids().ids_size(), 5);
  EXPECT_EQ(spec.stopping().max_tokens(), 3);
  EXPECT_TRUE(spec.stopping().ignore_eos());
}

TEST(Load, OpenLoopIsDueAtItsArrivals) {
  const client::FakeServer server;
  client::Interrupt interrupt;
  LoadOptions options = Options();
  options.rate = 2000;
  options.concurrency = 1;  // held back, and still due when it arrived
  const auto records = SendLoad(server, options, interrupt);
  const auto arrivals = PoissonArrivals(options.seed, options.requests, options.rate);
  ASSERT_EQ(records.size(), arrivals.size());
  for (size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(records[i].due, arrivals[i]);
    EXPECT_GE(records[i].first_token, arrivals[i]);
  }
  EXPECT_EQ(server.most_at_once(), 1);
}

TEST(Load, NotesErrorsByReason) {
  client::FakeServer server;
  server.stream_status =
      rpc::MakeError(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", {.reason = rpc::kQueueFull});
  client::Interrupt interrupt;
  for (const RequestRecord& record : SendLoad(server, Options(), interrupt))
    EXPECT_EQ(record.error, "QUEUE_FULL");
  client::FakeServer lossy;
  lossy.skip_sequence_at = 2;
  for (const RequestRecord& record : SendLoad(lossy, Options(), interrupt))
    EXPECT_EQ(record.error, "INCOMPLETE_STREAM");
}

TEST(Load, InterruptEndsEverything) {
  client::FakeServer server;
  server.hold = true;
  client::Interrupt interrupt;
  std::thread user([&] {
    while (server.streams() < 3) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    interrupt.Trip();
  });
  const auto records = SendLoad(server, Options(), interrupt);
  user.join();
  ASSERT_EQ(records.size(), 3u);  // no more were started
  for (const RequestRecord& record : records) EXPECT_EQ(record.error, "CANCELLED");
}

}  // namespace
}  // namespace qserve::bench
