// A group over two network namespaces joined by a pair of virtual interfaces, as two machines on
// one private network: the ranks meet on the interface that reaches the rendezvous, and a cut cable
// is a loss. Needs root and `ip netns`; skipped without.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/group_process.h"
#include "tests/integration/two_networks.h"

namespace qserve::worker {
namespace {

using ::qserve::integration::TwoNetworks;
using ::testing::HasSubstr;

constexpr const char* kBinary = QSERVE_GROUP_TEST_RANK;

class NetworkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!networks_.problem().empty()) GTEST_SKIP() << networks_.problem();
  }
  static std::vector<std::string> NodeCommand(int node) {
    return TwoNetworks::On(
        node, {kBinary, "serve", "4", "2", std::to_string(node), "10.213.7.1:7311", "s3cret"});
  }
  void Start() {
    first_.emplace(NodeCommand(0));
    second_.emplace(NodeCommand(1));
    ASSERT_TRUE(first_->WaitsUntilItSays("rank 0 at 10.213.7.1 is ready"));
    ASSERT_TRUE(first_->WaitsUntilItSays("rank 1 at 10.213.7.1 is ready"));
    ASSERT_TRUE(second_->WaitsUntilItSays("rank 2 at 10.213.7.2 is ready"));
    ASSERT_TRUE(second_->WaitsUntilItSays("rank 3 at 10.213.7.2 is ready"));
  }
  TwoNetworks networks_;
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
  ASSERT_TRUE(networks_.CutCable());
  EXPECT_EQ(first_->ExitStatus(), 1);
  EXPECT_EQ(second_->ExitStatus(), 1);
  EXPECT_THAT(first_->Output(), HasSubstr("node 1: it was silent"));
  EXPECT_THAT(second_->Output(), HasSubstr("node 0 was silent"));
  EXPECT_THAT(second_->Output(), HasSubstr("rank 3 was told: node 0 was silent"));
}

}  // namespace
}  // namespace qserve::worker
