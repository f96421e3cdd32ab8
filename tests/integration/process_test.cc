// The real programs as an operator runs them on the demo model: serve, drain, die in every way, and
// refuse what they cannot do. The model is quantized once, by the real quantizer.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>

#include "tests/integration/edge_client.h"
#include "tests/integration/process_child.h"
#include "tests/integration/process_workspace.h"

namespace qserve::integration {
namespace {

using testing::HasSubstr;

const testing::Environment* const kWorkspace =
    testing::AddGlobalTestEnvironment(new Workspace);  // gtest owns it

// A replica that serves.
class Worker {
 public:
  explicit Worker(int ranks, int metrics_port = 0, int drain_seconds = 240) {
    std::vector<std::string> command = {QSERVE_WORKER,
                                        "--model",
                                        Workspace::Model(),
                                        "--served-model-name",
                                        "demo",
                                        "--listen",
                                        "127.0.0.1:0",
                                        "--metrics-listen",
                                        "127.0.0.1:" + std::to_string(metrics_port),
                                        "--threads",
                                        "1",
                                        "--drain-timeout",
                                        std::to_string(drain_seconds),
                                        "--kv-cache-memory",
                                        "64MiB",
                                        "--tensor-parallel-size",
                                        std::to_string(ranks)};
    child_ = std::make_unique<Child>(std::move(command));
    EXPECT_TRUE(child_->Says("(port ")) << child_->Output();
    for (int rank = 0; rank < ranks; ++rank) pids_.push_back(child_->RankPid(rank));
  }
  std::string address() const {
    return "127.0.0.1:" + std::to_string(child_->NumberAfter("(port "));
  }
  Child& child() { return *child_; }
  pid_t rank(int rank) const { return pids_[static_cast<size_t>(rank)]; }
  bool NobodyIsLeft() const {
    return Child::Wait([this] {
      return std::all_of(pids_.begin(), pids_.end(), [](pid_t p) { return IsGone(p); });
    });
  }

 private:
  std::unique_ptr<Child> child_;
  std::vector<pid_t> pids_;
};

v1::GenerationSpec LongSpec() {
  v1::GenerationSpec spec = Spec(900);
  spec.mutable_output()->set_n(4);
  return spec;
}

class ProcessSizes : public testing::TestWithParam<int> {};

TEST_P(ProcessSizes, ServesThenDrainsWhenAskedToStop) {
  Worker worker(GetParam());
  const auto channel = Connect(worker.address());
  const Outcome first = Stream(channel, Spec(24));
  ExpectWhole(first);
  ExpectSame(Stream(channel, Spec(24)), first);
  LiveStream stream(channel, Spec(80));
  ASSERT_TRUE(stream.ReadTokens(3));
  kill(worker.child().pid(), SIGTERM);
  ExpectWhole(stream.End());
  EXPECT_EQ(stream.so_far().Ids().size(), 80u);
  EXPECT_EQ(worker.child().ExitStatus(), 0) << worker.child().Output();
  EXPECT_TRUE(worker.NobodyIsLeft());
}

INSTANTIATE_TEST_SUITE_P(TensorParallel, ProcessSizes, testing::Values(1, 2, 4));

TEST(ProcessDrain, WhatOutlastsTheDrainIsCutAndToldSo) {
  Worker worker(1, 0, 0);
  LiveStream stream(Connect(worker.address()), LongSpec());
  ASSERT_TRUE(stream.ReadTokens(3));
  kill(worker.child().pid(), SIGTERM);
  ExpectWhole(stream.End(), 4);
  EXPECT_EQ(stream.so_far().Finish(), v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(worker.child().ExitStatus(), 0) << worker.child().Output();
  EXPECT_TRUE(worker.NobodyIsLeft());
}

// Who is struck, and how.
struct Blow {
  const char* name;
  int rank;  // -1: the supervisor
  int signal;
};
class ProcessLoss : public testing::TestWithParam<Blow> {};

TEST_P(ProcessLoss, EndsTheGroupAndEveryRequest) {
  Worker worker(2);
  const auto channel = Connect(worker.address());
  LiveStream stream(channel, LongSpec());
  ASSERT_TRUE(stream.ReadTokens(2));
  const pid_t victim = GetParam().rank < 0 ? worker.child().pid() : worker.rank(GetParam().rank);
  ASSERT_GT(victim, 0);
  const auto struck = std::chrono::steady_clock::now();
  kill(victim, GetParam().signal);
  const grpc::Status status = stream.End().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << rpc::Describe(status);
  EXPECT_LT(std::chrono::steady_clock::now() - struck, std::chrono::seconds(15));
  const std::optional<int> exit = worker.child().ExitStatus();
  ASSERT_TRUE(exit.has_value());
  EXPECT_NE(*exit, 0);
  EXPECT_TRUE(worker.NobodyIsLeft());
}

INSTANTIATE_TEST_SUITE_P(Blows, ProcessLoss,
                         testing::Values(Blow{"KilledLeader", 0, SIGKILL},
                                         Blow{"KilledFollower", 1, SIGKILL},
                                         Blow{"StoppedFollower", 1, SIGSTOP},
                                         Blow{"StoppedLeader", 0, SIGSTOP},
                                         Blow{"KilledSupervisor", -1, SIGKILL}),
                         [](const auto& test) { return test.param.name; });

// Runs to its end; the exit status must not be 0, and the output must say why.
void ExpectRefusal(std::vector<std::string> command, const std::string& why) {
  SCOPED_TRACE(testing::PrintToString(command));
  Child child(std::move(command));
  const std::optional<int> exit = child.ExitStatus();
  ASSERT_TRUE(exit.has_value());
  EXPECT_NE(*exit, 0);
  EXPECT_LT(*exit, 128) << "ended by a signal";
  EXPECT_THAT(child.Output(), HasSubstr(why));
}

TEST(ProcessRefusal, FlagsThatCannotBeAreNamed) {
  const std::string model = Workspace::Model();
  const auto worker = [&model](std::vector<std::string> flags, const std::string& why) {
    std::vector<std::string> command = {QSERVE_WORKER, "--model", model};
    command.insert(command.end(), flags.begin(), flags.end());
    ExpectRefusal(command, why);
  };
  ExpectRefusal({QSERVE_WORKER}, "--model");
  ExpectRefusal({QSERVE_WORKER, "--model", "/nowhere/at/all"}, "/nowhere/at/all");
  worker({"--no-such-flag"}, "--no-such-flag");
  worker({"--max-num-seqs", "0"}, "--max-num-seqs");
  worker({"--max-num-seqs", "many"}, "--max-num-seqs");
  worker({"--max-num-batched-tokens", "-5"}, "--max-num-batched-tokens");
  worker({"--tensor-parallel-size", "0"}, "--tensor-parallel-size");
  worker({"--nodes", "2"}, "--tensor-parallel-size");
  worker({"--node-rank", "1"}, "--node-rank");
  worker({"--kv-cache-memory", "lots"}, "--kv-cache-memory");
  worker({"--kv-cache-dtype", "int5"}, "int5");
  worker({"--lm-head-dtype", "int5"}, "int5");
  worker({"--quantize", "int5"}, "int5");
  worker({"--listen", "nowhere"}, "--listen");
  worker({"--metrics-listen", "nowhere"}, "--metrics-listen");
  worker({"--listen", "256.0.0.1:1", "--metrics-listen", "127.0.0.1:0"}, "cannot listen");
  worker({"--drain-timeout", "-1"}, "--drain-timeout");
  worker({"--log-level", "loud"}, "loud");
  worker({"--cpu-isa", "z80"}, "z80");
  worker({"--tensor-parallel-size", "3"}, "3");
  ExpectRefusal({QSERVE_ROUTER}, "--workers");
  ExpectRefusal({QSERVE_ROUTER, "--workers", "localhost"}, "localhost");
  ExpectRefusal({QSERVE_ROUTER, "--workers", "h:1", "--policy", "best"}, "best");
  ExpectRefusal({QSERVE_ROUTER, "--workers", "h:1", "--listen", "256.0.0.1:1"}, "256.0.0.1");
}

TEST(ProcessRefusal, BrokenCheckpointsAreNamed) {
  const std::string broken = Workspace::directory() + "/broken";
  std::filesystem::copy(Workspace::Model(), broken, std::filesystem::copy_options::recursive);
  for (const auto& entry : std::filesystem::directory_iterator(broken)) {
    if (entry.path().extension() != ".safetensors") continue;
    std::filesystem::resize_file(entry.path(), entry.file_size() / 2);
  }
  ExpectRefusal({QSERVE_WORKER, "--model", broken, "--listen", "127.0.0.1:0", "--metrics-listen",
                 "127.0.0.1:0"},
                ".safetensors");
  std::filesystem::resize_file(broken + "/config.json", 20);
  ExpectRefusal({QSERVE_WORKER, "--model", broken, "--listen", "127.0.0.1:0", "--metrics-listen",
                 "127.0.0.1:0"},
                "config.json");
}

// What http://`address`/metrics says.
std::string Metrics(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string text;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
    if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) > 0) {
      char buffer[4096];
      for (ssize_t got = 0; (got = recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
        text.append(buffer, static_cast<size_t>(got));
      }
    }
  }
  close(fd);
  return text;
}

// A port that was free a moment ago.
int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

TEST(ProcessCluster, AKilledReplicaCostsItsStreamsNothing) {
  const int worker_metrics = FreePort();
  const int router_metrics = FreePort();
  Worker first(1);
  Worker second(1, worker_metrics);
  Child router({QSERVE_ROUTER, "--listen", "127.0.0.1:0", "--metrics-listen",
                "127.0.0.1:" + std::to_string(router_metrics), "--workers",
                first.address() + "," + second.address()});
  ASSERT_TRUE(router.Says("(port "));
  const auto channel = Connect("127.0.0.1:" + std::to_string(router.NumberAfter("(port ")));
  ASSERT_TRUE(Child::Wait([&] {
    return Metrics(router_metrics).find("qserve_router_ready_replicas 2") != std::string::npos;
  }));
  v1::GenerationSpec spec = Spec(QSERVE_STREAM_TOKENS);
  spec.mutable_output()->set_n(8);
  const Outcome undisturbed = Stream(channel, spec);
  ExpectWhole(undisturbed, 8);
  const auto has_it = [](const Worker& worker) {
    bool running = false;
    WatchUntil(Connect(worker.address()), [&running](const v1::WatchStatusResponse& status) {
      running = status.running() + status.waiting() > 0;
      return true;
    });
    return running;
  };
  // A report may be a moment old: both must have said that they are idle before the stream begins.
  ASSERT_TRUE(Child::Wait([&] { return !has_it(first) && !has_it(second); }));
  LiveStream stream(channel, spec);
  ASSERT_TRUE(stream.ReadTokens(10));
  // Kill whichever of the two has it.
  bool first_has_it = false;
  ASSERT_TRUE(Child::Wait([&] { return (first_has_it = has_it(first)) || has_it(second); }));
  Worker& busy = first_has_it ? first : second;
  kill(busy.rank(0), SIGKILL);
  ExpectWhole(stream.End(), 8);
  ExpectSame(stream.so_far(), undisturbed, 8);
  EXPECT_NE(busy.child().ExitStatus(), 0);
  EXPECT_TRUE(busy.NobodyIsLeft());
  EXPECT_THAT(Metrics(router_metrics), HasSubstr("qserve_router_resumes_total 1"));
  if (&busy != &second) {
    EXPECT_THAT(Metrics(worker_metrics), HasSubstr("qserve_generation_tokens_total"));
  }
  kill(router.pid(), SIGTERM);
  EXPECT_EQ(router.ExitStatus(), 0) << router.Output();
}

}  // namespace
}  // namespace qserve::integration
