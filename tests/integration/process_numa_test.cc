// The real worker with one rank a NUMA node, on a description of the machine made for the test:
// each of its nodes has one of the processors that this process may use.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/integration/process_child.h"

namespace qserve::integration {
namespace {

using testing::HasSubstr;

// Processors that `thread` (a process is its main one) may run on.
std::vector<int> CpusOf(pid_t thread) {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(thread, sizeof(set), &set), 0);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(static_cast<size_t>(cpu), &set)) cpus.push_back(cpu);
  }
  return cpus;
}

class ProcessNuma : public testing::Test {
 protected:
  void SetUp() override {
    cpus_ = CpusOf(0);
    if (cpus_.size() < 2) GTEST_SKIP() << "two processors make two nodes; this process has fewer";
    directory_ = testing::TempDir() + "qserve_process_numa_" + std::to_string(getpid());
    for (size_t node = 0; node < 2; ++node) {
      const std::string folder = directory_ + "/node" + std::to_string(node);
      std::filesystem::create_directories(folder);
      std::ofstream(folder + "/cpulist") << cpus_[node] << '\n';
    }
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::vector<std::string> Command(const std::string& device) const {
    return {QSERVE_WORKER,
            "--model",
            "deploy/demo-model",
            "--quantize",
            "rtn-g128",
            "--device",
            device,
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "",
            "--kv-cache-memory",
            "64MiB",
            "--tensor-parallel-size",
            "auto",
            "--numa-directory",
            directory_};
  }

  std::vector<int> cpus_;
  std::string directory_;
};

TEST_F(ProcessNuma, EveryThreadOfARankStaysOnItsNode) {
  Child worker(Command("cpu"));
  ASSERT_TRUE(worker.Says("(port ")) << worker.Output();
  for (int rank = 0; rank < 2; ++rank) {
    const pid_t pid = worker.RankPid(rank);
    ASSERT_GT(pid, 0) << worker.Output();
    int threads = 0;
    for (const auto& entry :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
      ++threads;
      EXPECT_EQ(CpusOf(std::stoi(entry.path().filename())),
                std::vector<int>{cpus_[static_cast<size_t>(rank)]});
    }
    EXPECT_GT(threads, 1);
  }
  EXPECT_THAT(worker.Output(), HasSubstr("1 thread ("));  // its node's processors, no more
  EXPECT_EQ(CpusOf(worker.pid()), cpus_);
  kill(worker.pid(), SIGTERM);
  EXPECT_EQ(worker.ExitStatus(), 0) << worker.Output();
}

TEST_F(ProcessNuma, IsForCpus) {
  Child worker(Command("auto"));
  EXPECT_EQ(worker.ExitStatus(), 1);
  EXPECT_THAT(worker.Output(), HasSubstr("--device cpu"));
}

}  // namespace
}  // namespace qserve::integration
