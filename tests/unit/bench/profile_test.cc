// The times of operations: every call is forwarded and counted, the table adds up; and the memory
// that the kernel tells.
#include "bench/profile.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <string>
#include <vector>

#include "bench/make_model.h"
#include "bench/memory.h"
#include "bench/offline.h"
#include "tests/unit/worker/checkpoint/testing.h"

namespace qserve::bench {
namespace {

using ::qserve::testing::TemporaryDirectory;

OfflineOptions SmallRun(const std::string& directory) {
  OfflineOptions options;
  options.executor.model_dir = directory;
  options.executor.device = "cpu";
  options.executor.threads = 2;
  options.executor.max_model_len = 64;
  options.executor.kv_cache_memory = int64_t{1} << 20;
  options.batch = 3;
  options.prompt_length = 9;
  options.output_length = 5;
  options.repeat = 2;
  return options;
}

TEST(Tabulate, TakesMediansOfTheStepsThatDecodeAndWhatIsLeftOfThem) {
  const auto step = [](double seconds, double linear) {
    return StepTime{.tokens = 2,
                    .decodes = true,
                    .seconds = seconds,
                    .inside = seconds - 1,
                    .ops = {{"norm", 1, 1}, {"linear", 4, linear}}};
  };
  std::vector<StepTime> steps = {step(10, 6), step(20, 12), step(11, 7)};
  steps.push_back({.tokens = 2, .decodes = false, .seconds = 99, .inside = 99, .ops = {}});
  steps.push_back({.tokens = 3, .decodes = true, .seconds = 99, .inside = 99, .ops = {}});
  const ProfileTable table = Tabulate(steps, 2);
  EXPECT_EQ(table.steps, 3);
  EXPECT_EQ(table.step_seconds, 11);
  ASSERT_EQ(table.rows.size(), 2u);
  EXPECT_EQ(table.rows[0].name, "linear");
  EXPECT_EQ(table.rows[0].calls, 4);
  EXPECT_EQ(table.rows[0].seconds, 7);
  EXPECT_EQ(table.rows[1].share, 1.0 / 11);
  EXPECT_EQ(table.remainder.seconds, 3);
  EXPECT_EQ(table.between, 1);
  EXPECT_EQ(Tabulate({}, 2).steps, 0);
}

TEST(Profile, CountsTheOperationsOfEveryStepOfARealModel) {
  const TemporaryDirectory directory;
  const std::string model = directory.path() + "/model";
  ASSERT_TRUE(MakeModel("tiny-llama", model, {}).ok());
  OfflineOptions options = SmallRun(model);
  options.profile = true;
  const auto result = RunOffline(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->profile.steps, options.repeat * (options.output_length - 1));
  double calls = 0;
  for (const ProfileTable::Row& row : result->profile.rows) {
    EXPECT_GT(row.seconds, 0) << row.name;
    calls += row.calls;
    if (row.name == "sample" || row.name == "embed") {
      EXPECT_EQ(row.calls, 1);
    }
  }
  EXPECT_GT(calls, 10);
  EXPECT_GT(result->profile.remainder.seconds, 0);
  EXPECT_FALSE(result->loading.empty());
  const auto json = ToJson(options, *result);
  EXPECT_EQ(json["profile"]["decode_steps"], 8);
  EXPECT_GT(json["memory"]["anonymous_bytes"], 0);
}

TEST(Offline, RunsWithPinnedThreadsAndRefusesMoreThreadsThanProcessors) {
  const TemporaryDirectory directory;
  const std::string model = directory.path() + "/model";
  ASSERT_TRUE(MakeModel("tiny-llama", model, {}).ok());
  OfflineOptions options = SmallRun(model);
  cpu_set_t before, after;
  CPU_ZERO(&before);
  CPU_ZERO(&after);
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  int first = 0;
  while (!CPU_ISSET(static_cast<size_t>(first), &before)) ++first;
  options.executor.processors = {first};
  EXPECT_EQ(RunOffline(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.executor.processors = {first, first};
  EXPECT_TRUE(RunOffline(options).ok());
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after)) << "the caller's thread is nobody's";
  options.executor.processors = {65535, first};
  EXPECT_FALSE(RunOffline(options).ok()) << "no machine lets a thread run there";
}

TEST(ProcessMemory, IsReadAsTheKernelWritesIt) {
  const ProcessMemory memory = ParseProcessMemory(
      "Name:\tVmHWM\nVmHWM:\t  2048 kB\nRssAnon:\t      12 kB\n",
      "00-ff ---p 0 0 [rollup]\nAnonymous:     9 kB\nAnonHugePages:      4096 kB\n");
  EXPECT_EQ(memory.peak, 2048 * 1024);
  EXPECT_EQ(memory.anonymous, 12 * 1024);
  EXPECT_EQ(memory.anonymous_huge, 4096 * 1024);
  const ProcessMemory unknown = ParseProcessMemory("VmHWM: x kB\nRssAnon: 1 MB\n", "");
  EXPECT_FALSE(unknown.peak || unknown.anonymous || unknown.anonymous_huge);
  EXPECT_GT(ReadProcessMemory().peak, 0);
}

}  // namespace
}  // namespace qserve::bench
