// One replica over two machines: the real worker with TP 2, one supervisor and one rank in each of
// two network namespaces. It must compute what the two ranks compute on one host, and a cut cable
// must end all of it. Needs root and `ip netns`; skipped without.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "nlohmann/json.hpp"
#include "tests/integration/process_child.h"
#include "tests/integration/process_workspace.h"
#include "tests/integration/two_networks.h"

namespace qserve::integration {
namespace {

using testing::HasSubstr;
using Command = std::vector<std::string>;

const testing::Environment* const kWorkspace =
    testing::AddGlobalTestEnvironment(new Workspace);  // gtest owns it

Command operator+(Command a, const Command& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Command WorkerCommand() {
  return {QSERVE_WORKER,
          "--model",
          Workspace::Model(),
          "--served-model-name",
          "demo",
          "--listen",
          "127.0.0.1:0",
          "--metrics-listen",
          "127.0.0.1:0",
          "--threads",
          "1",
          "--kv-cache-memory",
          "64MiB",
          "--tensor-parallel-size",
          "2"};
}

// The client's request to a worker on the same machine.
Command Generate(const Child& worker, const Command& flags) {
  const std::string address = "127.0.0.1:" + std::to_string(worker.NumberAfter("(port "));
  return Command{QSERVE_CLIENT, "generate",  "--address",   address,
                 "--prompt",    "Once upon", "--ignore-eos"} +
         flags;
}

const Command kRequests[] = {
    {"--json", "--max-tokens", "96", "--temperature", "0", "--seed", "11"},
    {"--json", "--max-tokens", "96", "--temperature", "1", "--seed", "11", "--n", "3"},
};

// The client's answer, without its name and without times.
nlohmann::json Answer(Child client) {
  EXPECT_EQ(client.ExitStatus(), 0) << client.Output();
  const std::string output = client.Output();
  auto json = nlohmann::json::parse(output.substr(std::min(output.find('{'), output.size())),
                                    nullptr, false);
  EXPECT_FALSE(json.is_discarded()) << output;
  if (!json.contains("usage")) return {};
  for (const char* time : {"queue_seconds", "time_to_first_token_seconds"}) {
    json["usage"].erase(time);
  }
  for (const char* other :
       {"request_id", "seconds", "time_to_first_token_seconds", "tokens_per_second"}) {
    json.erase(other);
  }
  return json;
}

class ProcessNetwork : public testing::Test {
 protected:
  void SetUp() override {
    if (!networks_.problem().empty()) GTEST_SKIP() << networks_.problem();
    setenv("QSERVE_RENDEZVOUS_SECRET", "known to both", 1);
    for (int node = 0; node < 2; ++node) {
      nodes_[node] = std::make_unique<Child>(TwoNetworks::On(
          node, WorkerCommand() + Command{"--nodes", "2", "--node-rank", std::to_string(node),
                                          "--rendezvous", TwoNetworks::Address(0) + ":7411"}));
    }
    unsetenv("QSERVE_RENDEZVOUS_SECRET");
    ASSERT_TRUE(nodes_[0]->Says("(port ")) << nodes_[0]->Output() << nodes_[1]->Output();
    for (int rank = 0; rank < 2; ++rank) {
      ranks_[rank] = nodes_[rank]->RankPid(rank);
      ASSERT_GT(ranks_[rank], 0);
      ASSERT_FALSE(IsGone(ranks_[rank]));
    }
  }
  bool NobodyIsLeft() const {
    return Child::Wait([this] { return IsGone(ranks_[0]) && IsGone(ranks_[1]); });
  }

  TwoNetworks networks_;
  std::unique_ptr<Child> nodes_[2];
  pid_t ranks_[2] = {-1, -1};
};

TEST_F(ProcessNetwork, ComputesWhatOneHostComputesAndDrains) {
  Child one_host(WorkerCommand());
  ASSERT_TRUE(one_host.Says("(port ")) << one_host.Output();
  for (const Command& request : kRequests) {
    SCOPED_TRACE(testing::PrintToString(request));
    const auto expected = Answer(Child(Generate(one_host, request)));
    const auto answer = Answer(Child(TwoNetworks::On(0, Generate(*nodes_[0], request))));
    ASSERT_FALSE(HasFailure());
    EXPECT_EQ(answer.dump(), expected.dump());
    EXPECT_EQ(answer["token_ids"].size(), 96u);
    EXPECT_NE(answer["numerics_id"], "");
  }
  kill(nodes_[0]->pid(), SIGTERM);
  EXPECT_EQ(nodes_[0]->ExitStatus(), 0) << nodes_[0]->Output();
  EXPECT_EQ(nodes_[1]->ExitStatus(), 0) << nodes_[1]->Output();
  EXPECT_TRUE(NobodyIsLeft());
  kill(one_host.pid(), SIGTERM);
  EXPECT_EQ(one_host.ExitStatus(), 0) << one_host.Output();
}

TEST_F(ProcessNetwork, ACutCableEndsBothMachinesAndTheRequest) {
  Child client(TwoNetworks::On(0, Generate(*nodes_[0], {"--max-tokens", "900"})));
  ASSERT_TRUE(Child::Wait([&client] { return client.Output().size() > 40; })) << client.Output();
  ASSERT_FALSE(IsGone(client.pid())) << client.Output();
  const auto cut = std::chrono::steady_clock::now();
  ASSERT_TRUE(networks_.CutCable());
  for (const auto& node : nodes_) {
    const std::optional<int> exit = node->ExitStatus();
    ASSERT_TRUE(exit.has_value()) << node->Output();
    EXPECT_NE(*exit, 0);
    EXPECT_LT(*exit, 128) << "ended by a signal";
    EXPECT_THAT(node->Output(), HasSubstr("was silent"));
  }
  const std::optional<int> exit = client.ExitStatus();
  ASSERT_TRUE(exit.has_value()) << client.Output();
  EXPECT_NE(*exit, 0) << client.Output();
  EXPECT_THAT(client.Output(), HasSubstr("qserve: "));
  EXPECT_LT(std::chrono::steady_clock::now() - cut, std::chrono::seconds(30));
  EXPECT_TRUE(NobodyIsLeft());
}

}  // namespace
}  // namespace qserve::integration
