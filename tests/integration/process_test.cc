// The real programs as an operator runs them on the demo model: serve, drain, die in every way, and
// refuse what they cannot do. The model is quantized once, by the real quantizer.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <functional>
#include <memory>

#include "tests/integration/edge_client.h"
#include "tests/integration/process_child.h"
#include "tests/integration/process_workspace.h"

namespace qserve::integration {
namespace {

using testing::HasSubstr;

const testing::Environment* const kWorkspace =
    testing::AddGlobalTestEnvironment(new Workspace);  // gtest owns it

constexpr const char* kAnyPort = "127.0.0.1:0";

// A replica that serves.
class Worker {
 public:
  explicit Worker(int ranks, int drain_seconds = 240) {
    std::vector<std::string> command = {QSERVE_WORKER,
                                        "--model",
                                        Workspace::Model(),
                                        "--served-model-name",
                                        "demo",
                                        "--listen",
                                        kAnyPort,
                                        "--metrics-listen",
                                        kAnyPort,
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
  EXPECT_THAT(
      worker.child().Output(),
      testing::ContainsRegex("weights [0-9.]+ MiB, KV cache [0-9.]+ MiB \\([0-9]+ blocks of "
                             "64 tokens\\), steps of 2048 tokens [0-9.]+ MiB, loaded in"));
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

TEST(ProcessDrain, WhatOutlastsTheDrainIsToGoOnElsewhere) {
  Worker worker(1, 0);
  LiveStream stream(Connect(worker.address()), LongSpec());
  ASSERT_TRUE(stream.ReadTokens(3));
  kill(worker.child().pid(), SIGTERM);
  const grpc::Status status = stream.End().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << rpc::Describe(status);
  EXPECT_EQ(rpc::ReasonOf(status), rpc::kDraining);
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
  worker({"--full-precision-dtype", "fp16"}, "fp16");
  worker({"--full-precision-dtype", "bf16", "--device", "cuda"}, "--full-precision-dtype");
  worker({"--listen", "nowhere"}, "--listen");
  worker({"--metrics-listen", "nowhere"}, "--metrics-listen");
  worker({"--listen", "256.0.0.1:1", "--metrics-listen", "127.0.0.1:0"}, "cannot listen");
  worker({"--drain-timeout", "-1"}, "--drain-timeout");
  worker({"--log-level", "loud"}, "loud");
  worker({"--cpu-isa", "z80"}, "z80");
  worker({"--tensor-parallel-size", "3"}, "3");
  ExpectRefusal({QSERVE_ROUTER, "--metrics-listen", "127.0.0.1:0"}, "--workers");
  ExpectRefusal({QSERVE_ROUTER, "--metrics-listen", "127.0.0.1:0", "--workers", "localhost"},
                "localhost");
  ExpectRefusal(
      {QSERVE_ROUTER, "--metrics-listen", "127.0.0.1:0", "--workers", "h:1", "--policy", "best"},
      "best");
  ExpectRefusal({QSERVE_ROUTER, "--metrics-listen", "127.0.0.1:0", "--workers", "h:1", "--listen",
                 "256.0.0.1:1"},
                "256.0.0.1");
}

TEST(ProcessRefusal, BrokenCheckpointsAreNamed) {
  const std::string broken = Workspace::directory() + "/broken";
  std::filesystem::remove_all(broken);  // of a repetition
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

// What http://127.0.0.1:`port`/metrics says.
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

// The value of one metric of a program that serves them, -1 if it has none.
double MetricOf(const Child& child, const std::string& name) {
  const std::string text =
      Metrics(child.NumberAfter(std::string("metrics on ") + kAnyPort + ", port "));
  const size_t place = text.find("\n" + name + " ");
  return place == std::string::npos ? -1 : std::stod(text.substr(place + name.size() + 2));
}

// A router over two replicas of one rank each; either may be struck while it has the only stream.
class ProcessCluster : public testing::Test {
 protected:
  ProcessCluster()
      : replicas_{Worker(1, 0), Worker(1, 0)},
        router_({QSERVE_ROUTER, "--listen", kAnyPort, "--metrics-listen", kAnyPort, "--workers",
                 replicas_[0].address() + "," + replicas_[1].address()}) {
    spec_.mutable_output()->set_n(kCandidates);
  }
  void SetUp() override {
    ASSERT_TRUE(router_.Says("(port "));
    ASSERT_TRUE(
        Child::Wait([this] { return MetricOf(router_, "qserve_router_ready_replicas") == 2; }));
  }
  static bool HasWork(const Worker& worker) {
    bool has_work = false;
    WatchUntil(Connect(worker.address()), [&has_work](const v1::WatchStatusResponse& status) {
      has_work = status.running() + status.waiting() > 0;
      return true;
    });
    return has_work;
  }
  static int64_t Tokens(const Outcome& outcome) {
    int64_t tokens = 0;
    for (const auto& chunk : outcome.chunks) tokens += chunk.token_ids_size();
    return tokens;
  }

  // A stream whose replica is struck in the middle by `strike` is what it would have been, and the
  // other replica has computed what was missing, not all of it.
  void ExpectToSurvive(const std::function<void(Worker&)>& strike) {
    const auto channel = Connect("127.0.0.1:" + std::to_string(router_.NumberAfter("(port ")));
    const Outcome undisturbed = Stream(channel, spec_);
    ExpectWhole(undisturbed, kCandidates);
    // A report may be a moment old: both must have said that they are idle before the stream
    // begins.
    ASSERT_TRUE(Child::Wait([this] { return !HasWork(replicas_[0]) && !HasWork(replicas_[1]); }));
    LiveStream stream(channel, spec_);
    ASSERT_TRUE(stream.ReadTokens(10));
    const int64_t received = Tokens(stream.so_far());
    bool first = false;
    ASSERT_TRUE(Child::Wait([&] {
      first = HasWork(replicas_[0]);
      return first || HasWork(replicas_[1]);
    }));
    Worker& struck = replicas_[first ? 0 : 1];
    Worker& other = replicas_[first ? 1 : 0];
    const double calls = MetricOf(other.child(), "qserve_requests_total");
    const double generated = MetricOf(other.child(), "qserve_generation_tokens_total");
    strike(struck);
    ExpectWhole(stream.End(), kCandidates);
    ExpectSame(stream.so_far(), undisturbed, kCandidates);
    EXPECT_EQ(MetricOf(router_, "qserve_router_resumes_total"), 1);
    EXPECT_EQ(MetricOf(router_, "qserve_router_interrupted_total"), 0);
    EXPECT_EQ(MetricOf(other.child(), "qserve_requests_total"), calls + 1);
    const double resumed = MetricOf(other.child(), "qserve_generation_tokens_total") - generated;
    EXPECT_GT(resumed, 0);
    EXPECT_LE(resumed, static_cast<double>(Tokens(undisturbed) - received));
    EXPECT_TRUE(struck.NobodyIsLeft());
    kill(router_.pid(), SIGTERM);
    EXPECT_EQ(router_.ExitStatus(), 0) << router_.Output();
  }

  static constexpr int32_t kCandidates = 8;
  Worker replicas_[2];
  Child router_;
  v1::GenerationSpec spec_ = Spec(QSERVE_STREAM_TOKENS);
};

TEST_F(ProcessCluster, AKilledReplicaCostsItsStreamsNothing) {
  ExpectToSurvive([](Worker& worker) {
    kill(worker.rank(0), SIGKILL);
    EXPECT_NE(worker.child().ExitStatus(), 0);
  });
}

TEST_F(ProcessCluster, AReplicaWhoseDrainIsOverCostsItsStreamsNothing) {
  ExpectToSurvive([](Worker& worker) {
    kill(worker.child().pid(), SIGTERM);
    EXPECT_EQ(worker.child().ExitStatus(), 0) << worker.child().Output();
  });
}

}  // namespace
}  // namespace qserve::integration
