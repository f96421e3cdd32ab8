// Output directories appear whole or not at all; safetensors files round-trip, in one file and in
// shards; an index leads nowhere else.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/worker/checkpoint/testing.h"
#include "worker/checkpoint/output_directory.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/tensor_set.h"

namespace qserve::worker::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::qserve::testing::ExpectError;
using ::qserve::testing::TemporaryDirectory;
using ::qserve::testing::WriteTextFile;

size_t EntriesIn(const std::string& path) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(path), fs::directory_iterator()));
}

TEST(OutputDirectory, AppearsWithCommitOnly) {
  const TemporaryDirectory root;
  for (const bool exists_empty : {false, true}) {
    const std::string path = root / (exists_empty ? "b" : "deep/a/");
    if (exists_empty) fs::create_directory(path);
    auto output = OutputDirectory::Create(path);
    ASSERT_TRUE(output.ok()) << output.status();
    ASSERT_TRUE((*output)->WriteFile("x.json", "{}").ok());
    EXPECT_FALSE(fs::exists(path + "/x.json"));
    ASSERT_TRUE((*output)->Commit().ok());
    output->reset();
    EXPECT_EQ(::qserve::testing::ReadTextFile(path + "/x.json"), "{}");
  }
  EXPECT_EQ(EntriesIn(root.path()), 2u);  // no temporary directory stays behind
}

TEST(OutputDirectory, LeavesNothingWithoutCommit) {
  const TemporaryDirectory root;
  {
    const auto output = OutputDirectory::Create(root / "a");
    ASSERT_TRUE(output.ok());
    ASSERT_TRUE((*output)->WriteFile("x.json", "{}").ok());
  }
  EXPECT_EQ(EntriesIn(root.path()), 0u);
}

TEST(OutputDirectory, RefusesWhatExists) {
  const TemporaryDirectory root;
  WriteTextFile(root / "file", "x");
  ExpectError(OutputDirectory::Create(root / "file").status(), absl::StatusCode::kAlreadyExists,
              "exists already");
  fs::create_directory(root / "full");
  WriteTextFile(root / "full/x", "x");
  ExpectError(OutputDirectory::Create(root / "full").status(), absl::StatusCode::kAlreadyExists,
              "exists already");
  EXPECT_FALSE(OutputDirectory::Create("").ok());
  EXPECT_FALSE(OutputDirectory::Create("/").ok());
  EXPECT_FALSE(OutputDirectory::Create(root / "file/below").ok());
  EXPECT_EQ(EntriesIn(root.path()), 2u);
}

TEST(OutputDirectory, DoesNotReplaceAModelThatAppearedMeanwhile) {
  const TemporaryDirectory root;
  {
    const auto output = OutputDirectory::Create(root / "a");
    ASSERT_TRUE(output.ok());
    fs::create_directory(root / "a");
    WriteTextFile(root / "a/theirs", "x");
    EXPECT_EQ((*output)->Commit().code(), absl::StatusCode::kAlreadyExists);
  }
  EXPECT_TRUE(fs::exists(root / "a/theirs"));
  EXPECT_EQ(EntriesIn(root.path()), 1u);
}

// A process that dies in the middle leaves its directory and no lock on it.
TEST(OutputDirectory, RemovesWhatDeadWritersLeft) {
  const TemporaryDirectory root;
  std::array<int, 2> ready{};
  ASSERT_EQ(::pipe(ready.data()), 0);
  const pid_t writer = ::fork();
  if (writer == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const auto output = OutputDirectory::Create(root / "a");
    const bool written = output.ok() && (*output)->WriteFile("x", "half of it").ok();
    if (!written || ::write(ready[1], "x", 1) != 1) ::_exit(1);
    while (true) ::pause();
  }
  ::close(ready[1]);
  char byte = 0;
  const bool begun = ::read(ready[0], &byte, 1) == 1;
  ::close(ready[0]);
  if (begun) {  // while it lives its files are its own, also beside a writer of the same name
    const auto output = OutputDirectory::Create(root / "a");
    EXPECT_TRUE(output.ok()) << output.status();
    EXPECT_EQ(EntriesIn(root.path()), 2u);
  }
  EXPECT_EQ(EntriesIn(root.path()), 1u);
  ::kill(writer, SIGKILL);
  ASSERT_EQ(::waitpid(writer, nullptr, 0), writer);
  ASSERT_TRUE(begun);
  EXPECT_EQ(EntriesIn(root.path()), 1u);
  ASSERT_TRUE(OutputDirectory::Create(root / "b").ok());
  EXPECT_EQ(EntriesIn(root.path()), 1u);  // of another name
  const auto output = OutputDirectory::Create(root / "a");
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(EntriesIn(root.path()), 1u);
  EXPECT_EQ(EntriesIn((*output)->temporary_path()), 0u);
}

TEST(OutputDirectory, RemovesNothingElse) {
  const TemporaryDirectory root;
  for (const char* name :
       {".a.partial-", ".a.partial-1234567", ".a.b.partial-123456", "a.partial-123456"})
    fs::create_directory(root / name);
  WriteTextFile(root / ".a.partial-abcdef", "a file");
  fs::create_directory(root / "elsewhere");
  fs::create_directory_symlink(root / "elsewhere", root / ".a.partial-ghijkl");
  ASSERT_TRUE(OutputDirectory::Create(root / "a").ok());
  EXPECT_EQ(EntriesIn(root.path()), 7u);
}

// Threads that make and drop directories of one name take none from each other.
TEST(OutputDirectory, WritersOfOneNameLeaveEachOtherAlone) {
  const TemporaryDirectory root;
  std::atomic<int> written = 0;
  const auto work = [&] {
    for (int i = 0; i < 50; ++i) {
      const auto output = OutputDirectory::Create(root / "a", Durability::kCached);
      if (output.ok() && (*output)->WriteFile("x", "x").ok()) ++written;
    }
  };
  {
    const std::jthread first(work), second(work), third(work);
  }
  EXPECT_EQ(written, 150);
  EXPECT_EQ(EntriesIn(root.path()), 0u);
}

// The limit on file sizes stands in for a full disk: both make write() fail in the middle.
TEST(OutputDirectory, LeavesNothingWhenWritingFails) {
  const TemporaryDirectory root;
  {
    const auto output = OutputDirectory::Create(root / "a");
    ASSERT_TRUE(output.ok());
    struct rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    struct rlimit limit = before;
    limit.rlim_cur = 1000;
    const auto handler = ::signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
    const absl::Status status = (*output)->WriteFile("x", std::string(5000, 'x'));
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    ::signal(SIGXFSZ, handler);
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("cannot write"));
  }
  EXPECT_EQ(EntriesIn(root.path()), 0u);
}

// A tensor of `elements` fp32 values counted up from `first`.
std::vector<float> Counted(size_t elements, float first) {
  std::vector<float> values(elements);
  std::iota(values.begin(), values.end(), first);
  return values;
}

std::string TensorName(int index) {
  std::string name = "t";
  name += std::to_string(index);
  return name;
}

absl::Status WriteModel(const std::string& path, int tensors, int64_t max_shard_bytes) {
  const auto output = OutputDirectory::Create(path);
  if (!output.ok()) return output.status();
  std::vector<TensorInfo> infos;
  for (int i = 0; i < tensors; ++i) infos.push_back({TensorName(i), Dtype::kF32, {5, 4}});
  infos.push_back({"empty", Dtype::kI8, {0, 3}});
  SafetensorsWriter writer(**output, infos, max_shard_bytes);
  for (int i = 0; i < tensors; ++i) {
    const std::vector<float> values = Counted(20, static_cast<float>(100 * i));
    const std::span<const float> all(values);
    for (const auto& piece : {all.first(7), all.subspan(7)}) {
      if (absl::Status status = writer.AppendSpan(TensorName(i), piece); !status.ok())
        return status;
    }
  }
  if (absl::Status status = writer.Finish(); !status.ok()) return status;
  return (*output)->Commit();
}

TEST(SafetensorsWriter, RoundTripsInOneFileAndInShards) {
  const TemporaryDirectory root;
  const struct {
    int64_t max_shard_bytes;
    size_t files;  // the index included
  } cases[] = {{1 << 20, 1}, {160, 5}, {80, 8}, {1, 9}};
  for (const auto& [max_shard_bytes, files] : cases) {
    const std::string path = root / std::to_string(max_shard_bytes);
    ASSERT_TRUE(WriteModel(path, 7, max_shard_bytes).ok());
    EXPECT_EQ(EntriesIn(path), files) << max_shard_bytes;
    const auto tensors = TensorSet::Open(path);
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    EXPECT_EQ(tensors->Names().size(), 8u);
    for (int i = 0; i < 7; ++i) {
      const auto view = tensors->Find(TensorName(i));
      ASSERT_TRUE(view.has_value());
      const std::vector<float> expected = Counted(20, static_cast<float>(100 * i));
      ASSERT_EQ(view->data.size(), 80u);
      EXPECT_EQ(std::memcmp(view->data.data(), expected.data(), 80), 0);
    }
  }
}

TEST(SafetensorsWriter, AlignsDataTo64Bytes) {
  const TemporaryDirectory root;
  ASSERT_TRUE(WriteModel(root / "m", 3, 1 << 20).ok());
  const auto file = SafetensorsFile::Open(root / "m/model.safetensors");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->header_bytes() % 64, 0);
}

TEST(TensorSet, SaysWhichShardIsMissing) {
  const TemporaryDirectory root;
  ASSERT_TRUE(WriteModel(root / "m", 4, 160).ok());
  fs::remove(root / "m/model-00002-of-00002.safetensors");
  ExpectError(TensorSet::Open(root / "m").status(), absl::StatusCode::kNotFound,
              "model-00002-of-00002.safetensors");
  ExpectError(TensorSet::Open(root / "none").status(), absl::StatusCode::kNotFound, "no directory");
  ExpectError(TensorSet::Open(root.path()).status(), absl::StatusCode::kNotFound,
              "neither model.safetensors");
  WriteTextFile(root / "pytorch_model.bin", "x");
  ExpectError(TensorSet::Open(root.path()).status(), absl::StatusCode::kNotFound,
              "converted to safetensors");
}

TEST(TensorSet, AnIndexStaysInItsDirectory) {
  const TemporaryDirectory root;
  ASSERT_TRUE(WriteModel(root / "m", 2, 80).ok());
  const std::string index = root / "m/model.safetensors.index.json";
  for (const char* name :
       {"../m/model-00001-of-00002.safetensors", "/etc/passwd", "..", "", "model.bin",
        ".safetensors", "a/b.safetensors", "a\\b.safetensors", "a b.safetensors"}) {
    const nlohmann::json text = {{"weight_map", {{"t0", name}}}};
    WriteTextFile(index, text.dump());
    ExpectError(TensorSet::Open(root / "m").status(), absl::StatusCode::kInvalidArgument,
                "of the same directory");
  }
  WriteTextFile(index, R"({"weight_map": {"t0": "model-00002-of-00002.safetensors"}})");
  ExpectError(TensorSet::Open(root / "m").status(), absl::StatusCode::kInvalidArgument,
              "tensor t0 is not in");
  for (const char* text :
       {"{}", "[]", "{\"weight_map\": []}", "{\"weight_map\": {\"t0\": 5}}", "{"}) {
    WriteTextFile(index, text);
    EXPECT_EQ(TensorSet::Open(root / "m").status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

}  // namespace
}  // namespace qserve::worker::checkpoint
