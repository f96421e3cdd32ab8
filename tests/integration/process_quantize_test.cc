// The real quantizer killed between two blocks, and out of disk in the middle: nothing is taken for
// a model that is none, and the same command goes on to the bytes of a run that nothing disturbed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/integration/process_child.h"
#include "tests/unit/worker/checkpoint/testing.h"

namespace qserve::integration {
namespace {

namespace fs = std::filesystem;
using ::qserve::testing::ReadTextFile;
using ::qserve::testing::TemporaryDirectory;
using ::testing::HasSubstr;

constexpr int kBlocks = 6;  // of the demo model

// Calibrates, but leaves out the searches, which take most of the time.
std::vector<std::string> Quantize(const std::string& output) {
  return {QSERVE_QUANTIZE,
          "--model",
          "deploy/demo-model",
          "--output",
          output,
          "--recipe",
          "qoq-g128",
          "--calibration",
          "deploy/demo-model/calibration.txt",
          "--calibration-samples",
          "4",
          "--calibration-length",
          "128",
          "--threads",
          "2",
          "--smooth-attention-search",
          "off",
          "--smooth-down-search",
          "off",
          "--clip-search",
          "off",
          "--gptq-sweeps",
          "0"};
}

std::vector<std::string> Entries(const std::string& path) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(path))
    names.push_back(entry.path().filename().string());
  return names;
}

// Blocks that are finished and kept beside an output in `path`: the windows behind the last one are
// there.
int FinishedBlocks(const std::string& path) {
  for (const std::string& name : Entries(path)) {
    if (!name.starts_with(".model.unfinished-")) continue;
    for (int block = kBlocks - 1; block >= 0; --block) {
      const std::string windows = "/windows-" + std::to_string(block);
      if (fs::exists(path + "/" + name + windows)) return block + 1;
    }
  }
  return 0;
}

// What an undisturbed run writes; made once.
const std::string& Expected() {
  static const std::string bytes = [] {
    const TemporaryDirectory root;
    Child child(Quantize(root / "model"));
    EXPECT_EQ(child.ExitStatus(), 0);
    EXPECT_EQ(Entries(root.path()), std::vector<std::string>{"model"});
    return ReadTextFile(root / "model/model.safetensors");
  }();
  return bytes;
}

TEST(ProcessQuantize, GoesOnBehindTheBlockWhereItWasKilled) {
  const TemporaryDirectory root;
  int done = 0;
  for (const int wanted : {1, 3}) {
    Child child(Quantize(root / "model"));
    ASSERT_TRUE(Child::Wait([&] { return FinishedBlocks(root.path()) >= wanted; }));
    kill(child.pid(), SIGKILL);
    ASSERT_EQ(child.ExitStatus(), 128 + SIGKILL);
    done = FinishedBlocks(root.path());
    EXPECT_LT(done, kBlocks);
    // What is kept, and what the dead could not remove.
    EXPECT_EQ(Entries(root.path()).size(), 2u);
    EXPECT_FALSE(fs::exists(root / "model"));
  }
  Child child(Quantize(root / "model"));
  ASSERT_EQ(child.ExitStatus(), 0);
  EXPECT_THAT(child.Output(), HasSubstr("going on behind block " + std::to_string(done) + " of 6"));
  EXPECT_EQ(Entries(root.path()), std::vector<std::string>{"model"});
  EXPECT_EQ(ReadTextFile(root / "model/model.safetensors"), Expected());
}

// `script` with a disk of `kilobytes` mounted on `path`, which nobody else sees; exit status 77 if
// that cannot be had here.
std::vector<std::string> WithDisk(const std::string& path, int kilobytes,
                                  const std::string& script) {
  const std::string mount =
      "mount -t tmpfs -o size=" + std::to_string(kilobytes) + "k none " + path;
  return {"sh", "-c",
          "exec unshare --user --map-root-user --mount sh -c '" + mount + " || exit 77; " + script +
              "' || exit 77"};
}

std::string Joined(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& word : words) line += word + " ";
  return line;
}

bool DisksCanBeMounted(const std::string& path) {
  Child child(WithDisk(path, 64, "true"));
  return child.ExitStatus() == 0;
}

TEST(ProcessQuantize, SaysBeforehandThatADiskIsTooSmall) {
  const TemporaryDirectory root;
  if (!DisksCanBeMounted(root.path())) GTEST_SKIP() << "this machine mounts no small disk";
  Child child(WithDisk(root.path(), 5000,
                       Joined(Quantize(root / "model")) + "; echo status $?; echo left $(ls -A " +
                           root.path() + ")."));
  ASSERT_EQ(child.ExitStatus(), 0);
  EXPECT_THAT(child.Output(), HasSubstr("the result needs 6 MB, but only 5 MB are free there"));
  EXPECT_THAT(child.Output(), HasSubstr("status 1\nleft .\n"));
}

// There is room for the result, but not for what is kept on the way.
TEST(ProcessQuantize, GoesOnWhenAFullDiskHasRoomAgain) {
  const TemporaryDirectory root;
  if (!DisksCanBeMounted(root.path())) GTEST_SKIP() << "this machine mounts no small disk";
  const TemporaryDirectory results;
  const std::string command = Joined(Quantize(root / "model"));
  Child child(WithDisk(root.path(), 8000,
                       command + "; echo status $?; echo left $(ls -A " + root.path() +
                           " | cut -d- -f1).; mount -o remount,size=64m " + root.path() + " && " +
                           command + " && cp " + root.path() + "/model/model.safetensors " +
                           results.path() + "; echo then $(ls -A " + root.path() + ")."));
  ASSERT_EQ(child.ExitStatus(), 0);
  EXPECT_THAT(child.Output(),
              HasSubstr(": the disk is full; the same command goes on behind the last block"));
  EXPECT_THAT(child.Output(), HasSubstr("status 1\nleft .model.unfinished.\n"));
  EXPECT_THAT(child.Output(), HasSubstr("going on behind block "));
  EXPECT_THAT(child.Output(), HasSubstr("then model.\n"));
  EXPECT_EQ(ReadTextFile(results / "model.safetensors"), Expected());
}

}  // namespace
}  // namespace qserve::integration
