// A group over two network namespaces joined by a pair of virtual interfaces, as two machines on
// one private network: the ranks meet on the interface that reaches the rendezvous, and a cut cable
// is a loss. Needs root and `ip netns`; skipped without.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/integration/group_process.h"

namespace qserve::worker {
namespace {

using ::testing::HasSubstr;

constexpr const char* kBinary = QSERVE_GROUP_TEST_RANK;

bool Shell(const std::string& command) {
  return std::system((command + " > /dev/null 2>&1").c_str()) == 0;
}

class NetworkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Shell("ip netns add " + Name(0)) || !Shell("ip netns add " + Name(1))) {
      GTEST_SKIP() << "network namespaces cannot be made here (needs root and iproute2)";
    }
    const bool made = Shell("ip link add " + Link(0) + " netns " + Name(0) +
                            " type veth peer name " + Link(1) + " netns " + Name(1));
    if (!made) GTEST_SKIP() << "virtual interfaces cannot be made here";
    for (int node = 0; node < 2; ++node) {
      const std::string in = "ip -n " + Name(node);
      ASSERT_TRUE(Shell(in + " address add 10.213.7." + std::to_string(node + 1) + "/24 dev " +
                        Link(node)));
      ASSERT_TRUE(Shell(in + " link set " + Link(node) + " up"));
      ASSERT_TRUE(Shell(in + " link set lo up"));
    }
  }
  void TearDown() override {
    first_.reset();
    second_.reset();
    for (int node = 0; node < 2; ++node) Shell("ip netns del " + Name(node));
  }
  static std::string Name(int node) {
    return "qserve" + std::to_string(getpid()) + "n" + std::to_string(node);
  }
  static std::string Link(int node) {
    return "qs" + std::to_string(getpid()) + "v" + std::to_string(node);
  }
  static std::vector<std::string> NodeCommand(int node) {
    return {"ip",    "netns", "exec", Name(node),           kBinary,
            "serve", "4",     "2",    std::to_string(node), "10.213.7.1:7311",
            "s3cret"};
  }
  void Start() {
    first_.emplace(NodeCommand(0));
    second_.emplace(NodeCommand(1));
    ASSERT_TRUE(first_->WaitsUntilItSays("rank 0 at 10.213.7.1 is ready"));
    ASSERT_TRUE(first_->WaitsUntilItSays("rank 1 at 10.213.7.1 is ready"));
    ASSERT_TRUE(second_->WaitsUntilItSays("rank 2 at 10.213.7.2 is ready"));
    ASSERT_TRUE(second_->WaitsUntilItSays("rank 3 at 10.213.7.2 is ready"));
  }
  std::optional<GroupProcess> first_;
  std::optional<GroupProcess> second_;
};

TEST_F(NetworkTest, TheGroupFormsAndEndsWell) {
  ASSERT_NO_FATAL_FAILURE(Start());
  first_->Signal(SIGTERM);
  EXPECT_EQ(first_->ExitStatus(), 0);
  EXPECT_EQ(second_->ExitStatus(), 0);
}

TEST_F(NetworkTest, ACutCableEndsBothNodes) {
  ASSERT_NO_FATAL_FAILURE(Start());
  ASSERT_TRUE(Shell("ip -n " + Name(1) + " link set " + Link(1) + " down"));
  EXPECT_EQ(first_->ExitStatus(), 1);
  EXPECT_EQ(second_->ExitStatus(), 1);
  EXPECT_THAT(first_->Output(), HasSubstr("node 1: it was silent"));
  EXPECT_THAT(second_->Output(), HasSubstr("node 0 was silent"));
  EXPECT_THAT(second_->Output(), HasSubstr("rank 3 was told: node 0 was silent"));
}

}  // namespace
}  // namespace qserve::worker
