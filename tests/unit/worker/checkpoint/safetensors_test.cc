// Safetensors files: valid ones, one case for each way to be wrong, and thousands of seeded
// mutations of a valid file, which must be refused or leave everything within bounds.
#include "worker/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

#include "tests/unit/worker/checkpoint/testing.h"

namespace qserve::worker::checkpoint {
namespace {

using ::qserve::testing::ExpectError;

std::string File(const std::string& header, size_t data_bytes) {
  std::string file;
  for (size_t i = 0; i < 8; ++i) file.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  return file + header + std::string(data_bytes, '\x01');
}

absl::StatusOr<std::vector<TensorEntry>> Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file)));
}

TEST(Safetensors, ReadsWhatTheFormatAllows) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"empty":{"dtype":"I8","shape":[0,5],"data_offsets":[4,4]}}   )";
  const auto tensors = Parse(File(header, 16));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  const auto begin = static_cast<int64_t>(8 + header.size());
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].begin, begin);
  EXPECT_TRUE((*tensors)[0].shape.empty());
  EXPECT_EQ((*tensors)[1].name, "b");
  EXPECT_EQ((*tensors)[1].dtype, Dtype::kF16);
  EXPECT_EQ((*tensors)[1].end, begin + 16);
  EXPECT_TRUE(Parse(File("{}", 0)).ok());
}

TEST(Safetensors, RefusesEveryMalformedHeader) {
  const struct {
    std::string header;
    size_t data_bytes;
    const char* why;
  } cases[] = {
      {"", 4, "does not begin"},
      {" {}", 0, "does not begin"},
      {"{", 0, "not JSON"},
      {"{}x", 0, "not JSON"},
      {R"({"a":5})", 0, "form of safetensors"},
      {R"({"a":[]})", 0, "form of safetensors"},
      {R"({"a":{}})", 0, "are required"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 4, "are required"},
      {R"({"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})", 4, "unknown dtype"},
      {R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}})", 4, "form of safetensors"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
       "stands twice"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4, "unknown member"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "form of safetensors"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "form of safetensors"},
      {R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "form of safetensors"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})", 4,
       "form of safetensors"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "two numbers"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4, "form of safetensors"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "do not lie within"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4, "do not lie within"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}})", 4,
       "form of safetensors"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999999]}})", 4,
       "form of safetensors"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "need 8 bytes"},
      {R"({"a":{"dtype":"F64","shape":[9223372036854775807,2],"data_offsets":[0,4]}})", 4,
       "overflows"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "overflows"},
      {R"({"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"I8","shape":[4],"data_offsets":[2,6]}})",
       6, "overlap"},
      {R"({"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"I8","shape":[2],"data_offsets":[4,6]}})",
       6, "hole"},
      {R"({"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}})", 5, "belong to none"},
      {R"({"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}})",
       0, "stands twice"},
      {R"({"__metadata__":"x"})", 0, "form of safetensors"},
      {R"({"__metadata__":{"a":{}}})", 0, "form of safetensors"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "stands twice"},
      {R"({"":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}})", 0, "name has 0 bytes"},
      {"{\"a\":" + std::string(1000000, '['), 0, "form of safetensors"},
  };
  for (const auto& [header, data_bytes, why] : cases) {
    SCOPED_TRACE(header.substr(0, 200));
    ExpectError(Parse(File(header, data_bytes)).status(), absl::StatusCode::kInvalidArgument, why);
  }
}

TEST(Safetensors, RefusesLengthsThatDoNotFit) {
  ExpectError(Parse("").status(), absl::StatusCode::kInvalidArgument, "too few");
  ExpectError(Parse("1234567").status(), absl::StatusCode::kInvalidArgument, "too few");
  ExpectError(Parse(std::string("\x05\0\0\0\0\0\0\0{}", 10)).status(),
              absl::StatusCode::kInvalidArgument, "truncated");
  ExpectError(Parse(std::string(8, '\xff') + "{}").status(), absl::StatusCode::kInvalidArgument,
              "at most 100000000");
}

std::string ValidFile() {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  for (int i = 0; i < 6; ++i) {
    const int begin = i * 24;
    header += R"(,"model.layers.)" + std::to_string(i) +
              R"(.weight":{"dtype":"F16","shape":[3,4],"data_offsets":[)" + std::to_string(begin) +
              "," + std::to_string(begin + 24) + "]}";
  }
  return File(header + "}", 144);
}

// What a reader may rely on for any file that is accepted.
void ExpectConsistent(const std::vector<TensorEntry>& tensors, const std::string& file) {
  for (const TensorEntry& tensor : tensors) {
    ASSERT_GE(tensor.begin, 8);
    ASSERT_LE(tensor.begin, tensor.end);
    ASSERT_LE(static_cast<size_t>(tensor.end), file.size());
    int64_t bytes = DtypeBytes(tensor.dtype);
    for (const int64_t dimension : tensor.shape) bytes *= dimension;
    ASSERT_EQ(bytes, tensor.end - tensor.begin);
  }
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string whole = ValidFile();
  ASSERT_TRUE(Parse(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_FALSE(Parse(whole.substr(0, size)).ok()) << size;
  EXPECT_FALSE(Parse(whole + "x").ok());
}

TEST(Safetensors, MutationsAreRefusedOrConsistent) {
  const std::string valid = ValidFile();
  const std::string alphabet = "{}[]\",:0123456789-.eF16nul\\\x00\xff ";
  std::mt19937 random(20240607);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string file = valid;
    const size_t changes = 1 + random() % 4;
    for (size_t change = 0; change < changes; ++change) {
      const size_t at = random() % (random() % 4 == 0 ? 8 : file.size());
      switch (random() % 4) {
        case 0:
          file[at] = static_cast<char>(random());
          break;
        case 1:
          file[at] = alphabet[random() % alphabet.size()];
          break;
        case 2:
          file.erase(at, 1 + random() % 8);
          break;
        default:
          file.insert(at, file.substr(random() % file.size(), random() % 16));
          break;
      }
      if (file.size() < 16) break;
    }
    const auto tensors = Parse(file);
    if (!tensors.ok()) continue;
    ++accepted;
    ExpectConsistent(*tensors, file);
  }
  EXPECT_GT(accepted, 0);  // changes of names and data
  EXPECT_LT(accepted, 15000);
}

TEST(SafetensorsFile, FindsTensorsByName) {
  const ::qserve::testing::TemporaryDirectory directory;
  ::qserve::testing::WriteTextFile(directory / "x.safetensors", ValidFile());
  const auto file = SafetensorsFile::Open(directory / "x.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const TensorEntry* entry = file->Find("model.layers.3.weight");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(file->Data(*entry).size(), 24u);
  EXPECT_EQ(file->Find("model.layers.3"), nullptr);
  EXPECT_EQ(SafetensorsFile::Open(directory / "y.safetensors").status().code(),
            absl::StatusCode::kNotFound);
  ::qserve::testing::WriteTextFile(directory / "z.safetensors", "{}");
  ExpectError(SafetensorsFile::Open(directory / "z.safetensors").status(),
              absl::StatusCode::kInvalidArgument, "z.safetensors");
}

}  // namespace
}  // namespace qserve::worker::checkpoint
