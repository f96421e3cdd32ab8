// The supervisor with real processes: clean ends, and every way of losing a rank, a supervisor or a
// node.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include "tests/integration/group_process.h"
#include "worker/group/socket.h"

namespace qserve::worker {
namespace {

using ::testing::HasSubstr;

constexpr const char* kBinary = QSERVE_GROUP_TEST_RANK;

std::vector<std::string> Command(const std::string& mode, int ranks) {
  return {kBinary, mode, std::to_string(ranks)};
}

void ExpectReady(const GroupProcess& group, int first, int last) {
  for (int rank = first; rank <= last; ++rank) {
    ASSERT_TRUE(group.WaitsUntilItSays("rank " + std::to_string(rank) + " at"));
  }
}

std::vector<pid_t> RankPids(const GroupProcess& group, int first, int last) {
  std::vector<pid_t> pids;
  for (int rank = first; rank <= last; ++rank) {
    pids.push_back(group.RankPid(rank));
    EXPECT_GT(pids.back(), 0);
  }
  return pids;
}

void ExpectGone(const std::vector<pid_t>& pids) {
  for (const pid_t pid : pids) EXPECT_TRUE(Eventually([pid] { return IsGone(pid); })) << pid;
}

class CleanEndTest : public ::testing::TestWithParam<int> {};

TEST_P(CleanEndTest, SigtermDrainsAndEndsWithZero) {
  GroupProcess group(Command("serve", GetParam()));
  ExpectReady(group, 0, GetParam() - 1);
  const std::vector<pid_t> pids = RankPids(group, 0, GetParam() - 1);
  group.Signal(SIGTERM);
  EXPECT_EQ(group.ExitStatus(), 0);
  EXPECT_TRUE(group.Says("every rank has ended well"));
  ExpectGone(pids);
}
INSTANTIATE_TEST_SUITE_P(Sizes, CleanEndTest, ::testing::Values(1, 2, 4));

// Rank and signal.
class LossTest : public ::testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(LossTest, ALostRankEndsTheGroup) {
  const auto [rank, signal_number] = GetParam();
  GroupProcess group(Command("serve", 3));
  ExpectReady(group, 0, 2);
  const std::vector<pid_t> pids = RankPids(group, 0, 2);
  kill(pids[static_cast<size_t>(rank)], signal_number);
  EXPECT_EQ(group.ExitStatus(), 1);
  ExpectGone(pids);
  const std::string output = group.Output();
  const std::string name = "the group is lost: rank " + std::to_string(rank);
  EXPECT_THAT(output, HasSubstr(name));
  EXPECT_THAT(output,
              HasSubstr(signal_number == SIGKILL ? "killed by signal 9" : "gave no sign of life"));
  if (signal_number != SIGSTOP) return;
  // Nothing breaks when a rank is merely stopped: the first of the others to leave knows only
  // because it was told. The second may see a connection end before it hears.
  int told = 0;
  for (int other = 0; other < 3; ++other) {
    const std::string words =
        "rank " + std::to_string(other) + " was told: rank " + std::to_string(rank);
    if (output.find(words) != std::string::npos) ++told;
  }
  EXPECT_GE(told, 1) << output;
}
INSTANTIATE_TEST_SUITE_P(RanksAndSignals, LossTest,
                         ::testing::Combine(::testing::Values(0, 1, 2),
                                            ::testing::Values(SIGKILL, SIGSTOP)));

TEST(Supervisor, TheLossOfTheOnlyRankIsALoss) {
  GroupProcess group(Command("serve", 1));
  ExpectReady(group, 0, 0);
  kill(group.RankPid(0), SIGKILL);
  EXPECT_EQ(group.ExitStatus(), 1);
}

TEST(Supervisor, ACrashAtStartGivesItsExitStatus) {
  GroupProcess group(Command("crash", 3));
  EXPECT_EQ(group.ExitStatus(), 7);
  EXPECT_THAT(group.Output(), HasSubstr("ended with exit status 7"));
}

TEST(Supervisor, ARankWithoutProgressIsLost) {
  GroupProcess group(Command("stall", 2));
  EXPECT_EQ(group.ExitStatus(), 1);
  EXPECT_THAT(group.Output(), HasSubstr("the group is lost: rank 1"));
  EXPECT_THAT(group.Output(), HasSubstr("made no progress"));
}

TEST(Supervisor, ASecondSigtermKills) {
  GroupProcess group(Command("hang", 2));
  ExpectReady(group, 0, 1);
  const std::vector<pid_t> pids = RankPids(group, 0, 1);
  group.Signal(SIGTERM);
  ASSERT_TRUE(group.WaitsUntilItSays("rank 0 drains"));
  group.Signal(SIGTERM);
  EXPECT_EQ(group.ExitStatus(), 1);
  ExpectGone(pids);
}

TEST(Supervisor, ItsOwnDeathTakesTheRanksAlong) {
  GroupProcess group(Command("serve", 2));
  ExpectReady(group, 0, 1);
  const std::vector<pid_t> pids = RankPids(group, 0, 1);
  group.Signal(SIGKILL);
  EXPECT_EQ(group.ExitStatus(), std::nullopt);
  ExpectGone(pids);
}

TEST(Supervisor, BeingStoppedForAWhileIsNoLossOfRanks) {
  GroupProcess group(Command("serve", 2));
  ExpectReady(group, 0, 1);
  group.Signal(SIGSTOP);
  std::this_thread::sleep_for(std::chrono::seconds(4));  // longer than a rank may be silent
  group.Signal(SIGCONT);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  group.Signal(SIGTERM);
  EXPECT_EQ(group.ExitStatus(), 0);
}

TEST(Supervisor, RefusesOptionsThatDoNotFit) {
  GroupProcess odd({kBinary, "serve", "3", "2", "0", "127.0.0.1:7000"});
  EXPECT_EQ(odd.ExitStatus(), 2);
  EXPECT_THAT(odd.Output(), HasSubstr("does not divide by --nodes 2"));
  GroupProcess nowhere({kBinary, "serve", "2", "2", "0"});
  EXPECT_EQ(nowhere.ExitStatus(), 2);
  EXPECT_THAT(nowhere.Output(), HasSubstr("--rendezvous"));
}

TEST(Supervisor, TheInternalVariableIsRefusedFromOthers) {
  GroupProcess impostor({"env", "QSERVE_RANK_FD=7", kBinary, "serve", "1"});
  EXPECT_EQ(impostor.ExitStatus(), 5);
  EXPECT_THAT(impostor.Output(), HasSubstr("QSERVE_RANK_FD"));
}

// Two nodes on loopback.

std::string FreeAddress() {
  const auto fd = group::Listen({"127.0.0.1", 0});
  EXPECT_TRUE(fd.ok());
  return group::LocalEndpoint(fd->get())->ToString();
}

std::vector<std::string> NodeCommand(int node, const std::string& rendezvous,
                                     const std::string& secret = "s3cret",
                                     const std::string& config = "c0ffee") {
  return {kBinary, "serve", "4", "2", std::to_string(node), rendezvous, secret, config};
}

class TwoNodesTest : public ::testing::Test {
 protected:
  void Start() {
    const std::string rendezvous = FreeAddress();
    // The later node first: it waits for the rendezvous.
    second_.emplace(NodeCommand(1, rendezvous));
    ASSERT_TRUE(second_->WaitsUntilItSays("waiting for the rendezvous"));
    first_.emplace(NodeCommand(0, rendezvous));
    ExpectReady(*first_, 0, 1);
    ExpectReady(*second_, 2, 3);
    pids_ = RankPids(*first_, 0, 1);
    for (const pid_t pid : RankPids(*second_, 2, 3)) pids_.push_back(pid);
  }
  std::optional<GroupProcess> first_;
  std::optional<GroupProcess> second_;
  std::vector<pid_t> pids_;
};

TEST_F(TwoNodesTest, StopsFromTheFirstNode) {
  ASSERT_NO_FATAL_FAILURE(Start());
  first_->Signal(SIGTERM);
  EXPECT_EQ(first_->ExitStatus(), 0);
  EXPECT_EQ(second_->ExitStatus(), 0);
  ExpectGone(pids_);
}

TEST_F(TwoNodesTest, StopsFromTheSecondNode) {
  ASSERT_NO_FATAL_FAILURE(Start());
  second_->Signal(SIGTERM);
  EXPECT_EQ(first_->ExitStatus(), 0);
  EXPECT_EQ(second_->ExitStatus(), 0);
}

TEST_F(TwoNodesTest, ARankOfOneNodeIsMissedOnBoth) {
  ASSERT_NO_FATAL_FAILURE(Start());
  kill(pids_[3], SIGSTOP);
  EXPECT_EQ(first_->ExitStatus(), 1);
  EXPECT_EQ(second_->ExitStatus(), 1);
  EXPECT_THAT(first_->Output(), HasSubstr("node 1: rank 3"));
  EXPECT_THAT(first_->Output(), HasSubstr("rank 0 was told: node 1: rank 3"));
  ExpectGone(pids_);
}

TEST_F(TwoNodesTest, AKilledRankIsNamedOnBoth) {
  ASSERT_NO_FATAL_FAILURE(Start());
  kill(pids_[2], SIGKILL);
  EXPECT_EQ(first_->ExitStatus(), 1);
  EXPECT_EQ(second_->ExitStatus(), 1);
  EXPECT_THAT(first_->Output(), HasSubstr("the group is lost: node 1: rank 2"));
  EXPECT_THAT(second_->Output(), HasSubstr("the group is lost: rank 2"));
  ExpectGone(pids_);
}

TEST_F(TwoNodesTest, AKilledSupervisorEndsTheOtherNode) {
  ASSERT_NO_FATAL_FAILURE(Start());
  first_->Signal(SIGKILL);
  EXPECT_EQ(second_->ExitStatus(), 1);
  ExpectGone(pids_);
}

TEST_F(TwoNodesTest, AStoppedSupervisorEndsTheOtherNode) {
  ASSERT_NO_FATAL_FAILURE(Start());
  second_->Signal(SIGSTOP);
  EXPECT_EQ(first_->ExitStatus(), 1);
  EXPECT_THAT(first_->Output(), HasSubstr("node 1: it was silent"));
  second_->Signal(SIGCONT);
  // Its ranks have given up by themselves meanwhile.
  EXPECT_NE(second_->ExitStatus().value_or(0), 0);
  ExpectGone(pids_);
}

TEST(TwoNodes, AnAddressOfAnotherMachineIsSaidAndMayBeInterrupted) {
  GroupProcess group(NodeCommand(0, "192.0.2.1:7000"));  // reserved for documentation
  ASSERT_TRUE(group.WaitsUntilItSays("cannot listen on 192.0.2.1:7000"));
  group.Signal(SIGTERM);
  EXPECT_EQ(group.ExitStatus(), 0);
}

TEST(TwoNodes, AWrongSecretOrConfigurationIsRefused) {
  const std::string rendezvous = FreeAddress();
  GroupProcess first(NodeCommand(0, rendezvous));
  ASSERT_TRUE(first.WaitsUntilItSays("waiting for 1 other nodes"));
  GroupProcess guess(NodeCommand(1, rendezvous, "guess"));
  EXPECT_EQ(guess.ExitStatus(), 1);
  EXPECT_THAT(guess.Output(), HasSubstr("the secret is wrong"));
  GroupProcess other(NodeCommand(1, rendezvous, "s3cret", "decaf"));
  EXPECT_EQ(other.ExitStatus(), 1);
  EXPECT_THAT(other.Output(), HasSubstr("hash decaf there, c0ffee here"));
  EXPECT_THAT(first.Output(), HasSubstr("hash decaf there, c0ffee here"));
  EXPECT_THAT(other.Output() + guess.Output() + first.Output(),
              ::testing::Not(HasSubstr("s3cret")));
  first.Signal(SIGTERM);
  EXPECT_EQ(first.ExitStatus(), 0);
}

}  // namespace
}  // namespace qserve::worker
