// NUMA nodes as a machine describes them, from trees made on the spot, and binding a thread to one.
#include "worker/group/numa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <thread>

namespace qserve::worker::group {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<int> Cpus(int first, int last) {
  std::vector<int> cpus;
  for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
  return cpus;
}

class NumaTree : public ::testing::Test {
 protected:
  NumaTree() : root_(::testing::TempDir() + "qserve_numa_" + std::to_string(getpid())) {
    std::filesystem::create_directories(root_);
  }
  ~NumaTree() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& line) {
    std::filesystem::create_directories(std::filesystem::path(root_ + "/" + path).parent_path());
    std::ofstream(root_ + "/" + path) << line << '\n';
  }
  std::map<int, std::vector<int>> Read(const std::vector<int>& allowed) {
    const auto nodes = ReadNumaNodes(root_, allowed);
    EXPECT_TRUE(nodes.ok()) << nodes.status();
    std::map<int, std::vector<int>> by_number;
    if (!nodes.ok()) return by_number;
    for (const NumaNode& node : *nodes) by_number[node.id] = node.cpus;
    return by_number;
  }

  std::string root_;
};

using Nodes = std::map<int, std::vector<int>>;

TEST(CpuList, IsReadAsTheKernelWritesIt) {
  EXPECT_THAT(*ParseCpuList(""), IsEmpty());
  EXPECT_THAT(*ParseCpuList("7"), ElementsAre(7));
  EXPECT_THAT(*ParseCpuList("0-2,5,8-9"), ElementsAre(0, 1, 2, 5, 8, 9));
  for (const char* bad :
       {"a", "3-1", "1,", ",1", "1,,2", "-1", "1-", "5,2", "1-3,3", "65536", "0-99999999", "1 2"}) {
    EXPECT_FALSE(ParseCpuList(bad).ok()) << bad;
  }
}

TEST_F(NumaTree, SeveralNodesWithTheirProcessors) {
  Write("online", "0-1");
  Write("has_memory", "0-1");
  Write("node0/cpulist", "0-3,8-11");
  Write("node1/cpulist", "4-7,12-15");
  Write("possible", "0-7");
  EXPECT_EQ(Read(Cpus(0, 15)),
            (Nodes{{0, {0, 1, 2, 3, 8, 9, 10, 11}}, {1, {4, 5, 6, 7, 12, 13, 14, 15}}}));
}

TEST_F(NumaTree, NodesAreInTheOrderOfTheirNumbers) {
  for (int node = 0; node < 12; ++node)
    Write("node" + std::to_string(node) + "/cpulist", std::to_string(node));
  const auto nodes = ReadNumaNodes(root_, Cpus(0, 11));
  ASSERT_EQ(nodes->size(), 12u);
  for (int node = 0; node < 12; ++node) EXPECT_EQ((*nodes)[static_cast<size_t>(node)].id, node);
}

TEST_F(NumaTree, NodesOfMemoryOnlyOrOfProcessorsOnlyDoNotCount) {
  Write("online", "0-3");
  Write("has_memory", "0,2-3");
  Write("node0/cpulist", "0-1");
  Write("node1/cpulist", "2-3");
  Write("node2/cpulist", "");
  Write("node3/cpulist", "4-5");
  EXPECT_EQ(Read(Cpus(0, 5)), (Nodes{{0, {0, 1}}, {3, {4, 5}}}));
}

TEST_F(NumaTree, OfflineNodesAndProcessorsDoNotCount) {
  Write("online", "0-1");
  Write("node0/cpulist", "0-3");
  Write("node1/cpulist", "4-7");
  Write("node2/cpulist", "8-9");
  EXPECT_EQ(Read({0, 1, 3, 4, 8}), (Nodes{{0, {0, 1, 3}}, {1, {4}}}));
}

TEST_F(NumaTree, AContainerHasTheNodesOfItsProcessors) {
  Write("node0/cpulist", "0-31");
  Write("node1/cpulist", "32-63");
  EXPECT_EQ(Read(Cpus(40, 43)), (Nodes{{1, {40, 41, 42, 43}}}));
  EXPECT_EQ(Read(Cpus(30, 33)), (Nodes{{0, {30, 31}}, {1, {32, 33}}}));
  EXPECT_EQ(Read({}), Nodes{});
}

TEST_F(NumaTree, NothingIsThereWithoutNuma) {
  EXPECT_EQ(Read(Cpus(0, 3)), Nodes{});
  const auto absent = ReadNumaNodes(root_ + "/absent", Cpus(0, 3));
  ASSERT_TRUE(absent.ok());
  EXPECT_THAT(*absent, IsEmpty());
}

TEST_F(NumaTree, NonsenseIsAnErrorThatNamesTheFile) {
  Write("node0/cpulist", "zero");
  const auto nodes = ReadNumaNodes(root_, Cpus(0, 3));
  ASSERT_FALSE(nodes.ok());
  EXPECT_NE(std::string(nodes.status().message()).find("node0/cpulist"), std::string::npos);
}

TEST(NodeOfRank, SpreadsNeighboursTogether) {
  EXPECT_EQ(NodeOfRank(0, 2, 2), 0);
  EXPECT_EQ(NodeOfRank(1, 2, 2), 1);
  EXPECT_EQ(NodeOfRank(1, 4, 2), 0);
  EXPECT_EQ(NodeOfRank(2, 4, 2), 1);
  EXPECT_EQ(NodeOfRank(1, 2, 3), 1);
}

TEST(ShareOfCpus, IsEvenWithoutOverlapAndEmptyWhereThereAreTooFew) {
  const std::vector<int> cpus = {0, 2, 4, 6, 8};
  EXPECT_THAT(ShareOfCpus(cpus, 0, 1), ElementsAre(0, 2, 4, 6, 8));
  EXPECT_THAT(ShareOfCpus(cpus, 0, 2), ElementsAre(0, 2));
  EXPECT_THAT(ShareOfCpus(cpus, 1, 2), ElementsAre(4, 6));
  EXPECT_THAT(ShareOfCpus(cpus, 4, 5), ElementsAre(8));
  EXPECT_THAT(ShareOfCpus(cpus, 0, 6), IsEmpty());
  EXPECT_THAT(ShareOfCpus(cpus, 5, 6), IsEmpty());
}

TEST(BindToNode, KeepsAThreadAndItsChildrenOnTheProcessors) {
  const std::vector<int> all = AllowedCpus();
  ASSERT_FALSE(all.empty());
  std::vector<int> mine, childs;
  absl::Status bound, impossible;
  std::thread thread([&] {
    bound = BindToNode({.id = 0, .cpus = {all.back()}});
    mine = AllowedCpus();
    std::thread([&] { childs = AllowedCpus(); }).join();
    impossible = BindToNode({.id = 0, .cpus = {65535}});
  });
  thread.join();
  EXPECT_TRUE(bound.ok()) << bound;
  EXPECT_THAT(mine, ElementsAre(all.back()));
  EXPECT_THAT(childs, ElementsAre(all.back()));
  EXPECT_FALSE(impossible.ok());
  EXPECT_EQ(AllowedCpus(), all);  // nobody else's
}

}  // namespace
}  // namespace qserve::worker::group
