// Archives of torch.save: what is read, that nothing else is, and damage at every byte. Archives
// are made here, byte by byte, or are fixtures of tests/golden/import.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>

#include "tests/unit/worker/checkpoint/testing.h"
#include "worker/checkpoint/pickled_state.h"
#include "worker/checkpoint/torch_file.h"
#include "worker/checkpoint/zip_directory.h"

namespace qserve::worker::checkpoint {
namespace {

using ::qserve::testing::ExpectError;
using ::qserve::testing::ReadTextFile;
using std::string_literals::operator""s;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr const char* kWide = "tests/golden/import/packed-g128-postscale.pytorch_model.bin";
constexpr const char* kNarrow = "tests/golden/import/deepcompressor-gchn-prescale.scale.bin";

std::string Little(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i, value >>= 8) text.push_back(static_cast<char>(value));
  return text;
}

std::string Zip(const std::map<std::string, std::string>& entries, uint16_t flags = 0,
                uint16_t method = 0) {
  std::string file, directory;
  for (const auto& [name, data] : entries) {
    const std::string sizes = Little(0, 4) + Little(data.size(), 4) + Little(data.size(), 4);
    directory += Little(0x02014b50, 4) + Little(0, 4) + Little(flags, 2) + Little(method, 2) +
                 Little(0, 4) + sizes + Little(name.size(), 2) + Little(0, 12) +
                 Little(file.size(), 4) + name;
    file += Little(0x04034b50, 4) + Little(0, 2) + Little(flags, 2) + Little(method, 2) +
            Little(0, 4) + sizes + Little(name.size(), 2) + Little(0, 2) + name + data;
  }
  const std::string end = Little(0x06054b50, 4) + Little(0, 4) + Little(entries.size(), 2) +
                          Little(entries.size(), 2) + Little(directory.size(), 4) +
                          Little(file.size(), 4) + Little(0, 2);
  return file + directory + end;
}

std::string Text(const std::string& text) { return "X" + Little(text.size(), 4) + text; }
std::string Global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
std::string Int(int32_t value) { return "J" + Little(static_cast<uint32_t>(value), 4); }

// _rebuild_tensor_v2 of a two-dimensional view.
struct View {
  int32_t rows = 2, cols = 3, row_stride = 3, col_stride = 1, offset = 0, elements = 6;
  std::string storage = "HalfStorage", key = "0";
};
std::string Rebuild(const View& v) {
  const std::string storage = "(" + Text("storage") + Global("torch", v.storage) + Text(v.key) +
                              Text("cpu") + Int(v.elements) + "tQ";
  return Global("torch._utils", "_rebuild_tensor_v2") + "(" + storage + Int(v.offset) +
         Int(v.rows) + Int(v.cols) + "\x86" + Int(v.row_stride) + Int(v.col_stride) + "\x86\x89" +
         Global("collections", "OrderedDict") + ")RtR";
}
std::string Pickle(const std::string& body) { return "\x80\x02" + body + "."; }
std::string Dictionary(const std::string& name, const std::string& value) {
  return Pickle(Global("collections", "OrderedDict") + ")R(" + Text(name) + value + "u");
}

absl::StatusOr<std::vector<TorchTensor>> Parse(const std::string& file) {
  return ParseTorchFile(std::as_bytes(std::span(file)));
}
absl::StatusOr<std::vector<TorchTensor>> ParseView(const View& view) {
  return Parse(Zip({{"a/data.pkl", Dictionary("w", Rebuild(view))}, {"a/data/0", "0123456789ab"}}));
}

TEST(TorchFile, ReadsTensors) {
  const auto tensors = ParseView({});
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 1u);
  EXPECT_EQ(tensors->front().name, "w");
  EXPECT_EQ(tensors->front().dtype, Dtype::kF16);
  EXPECT_EQ(tensors->front().shape, (std::vector<int64_t>{2, 3}));
}

TEST(TorchFile, GathersViews) {
  ::qserve::testing::TemporaryDirectory directory;
  const View view = {.row_stride = 1, .col_stride = 2, .storage = "CharStorage"};
  ::qserve::testing::WriteTextFile(
      directory / "f",
      Zip({{"a/data.pkl", Dictionary("w", Rebuild(view))}, {"a/data/0", "abcdef"}}));
  const auto file = TorchFile::Open(directory / "f");
  ASSERT_TRUE(file.ok()) << file.status();
  const std::vector<uint8_t> data = file->Read(*file->Find("w"));
  EXPECT_EQ(std::string(data.begin(), data.end()), "acebdf");
}

TEST(TorchFile, ReadsNestedDictionariesAndPassesOverOtherValues) {
  const std::string inner = "}(" + Text("w") + Rebuild({}) + Text("n") + Int(3) + "u";
  const auto tensors =
      Parse(Zip({{"a/data.pkl", Pickle("}(" + Text("state") + inner + Text("list") + "](" + Int(1) +
                                       Int(2) + "e" + "u")},
                 {"a/data/0", "0123456789ab"}}));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 1u);
  EXPECT_EQ(tensors->front().name, "state.w");
}

TEST(TorchFile, ExecutesNothing) {
  for (const auto& [module, name] :
       {std::pair("os", "system"), std::pair("builtins", "eval"), std::pair("torch", "load"),
        std::pair("torch.HalfStorage", ""), std::pair("posix", "system")}) {
    const std::string call = Global(module, name) + "(" + Text("touch /tmp/owned") + "tR";
    ExpectError(Parse(Zip({{"a/data.pkl", Dictionary("w", call)}})).status(), kInvalid,
                "nothing is executed");
  }
  const std::string stacked = Text("os") + Text("system") + "\x93";
  ExpectError(ReadPickledState(Dictionary("w", stacked)).status(), kInvalid, "nothing is executed");
  // INST, OBJ, NEWOBJ, EXT1, PERSID.
  for (const char opcode : {'i', 'o', '\x81', '\x82', 'P'}) {
    ExpectError(ReadPickledState(Dictionary("w", std::string(1, opcode) + "os\nsystem\n")).status(),
                kInvalid, "is not one that a dictionary of tensors needs");
  }
}

TEST(TorchFile, RefusesTensorsBeyondTheirStorage) {
  const char* const why = "does not lie within its storage";
  ExpectError(ParseView({.rows = 3}).status(), kInvalid, why);
  ExpectError(ParseView({.row_stride = 4}).status(), kInvalid, why);
  ExpectError(ParseView({.offset = 1}).status(), kInvalid, why);
  ExpectError(ParseView({.offset = -1}).status(), kInvalid, why);
  ExpectError(ParseView({.rows = -2}).status(), kInvalid, why);
  ExpectError(ParseView({.row_stride = -3}).status(), kInvalid, why);
  ExpectError(ParseView({.rows = INT32_MAX, .cols = INT32_MAX}).status(), kInvalid, why);
  ExpectError(ParseView({.rows = 1 << 20, .row_stride = 0}).status(), kInvalid, why);
  ExpectError(ParseView({.rows = 3, .elements = 9}).status(), kInvalid, "too short");
  ExpectError(ParseView({.key = "1"}).status(), kInvalid, "missing or too short");
  ExpectError(ParseView({.storage = "FloatStorage"}).status(), kInvalid, "too short");
}

TEST(TorchFile, RefusesWhatIsNoArchiveOfTorch) {
  ExpectError(Parse("").status(), kInvalid, "no zip archive");
  ExpectError(Parse("\x80\x02}.").status(), kInvalid, "no zip archive");
  ExpectError(Parse("PK\x03\x04").status(), kInvalid, "truncated");
  ExpectError(Parse(Zip({{"a/b", "c"}})).status(), kInvalid, "no data.pkl");
  ExpectError(Parse(Zip({{"a/data.pkl", "}."}, {"b/data.pkl", "}."}})).status(), kInvalid, "two");
  ExpectError(Parse(Zip({{"a/data.pkl", Pickle("}")}}, 1)).status(), kInvalid, "encrypted");
  ExpectError(Parse(Zip({{"a/data.pkl", Pickle("}")}}, 0, 8)).status(), kInvalid, "compressed");
  ExpectError(Parse(Zip({{"a/data.pkl", Pickle("]")}})).status(), kInvalid, "dictionary");
  ExpectError(Parse(Zip({{"a/data.pkl", Pickle("}")}, {"a/byteorder", "big"}})).status(), kInvalid,
              "little-endian");
  EXPECT_TRUE(Parse(Zip({{"a/data.pkl", Pickle("}")}, {"a/byteorder", "little"}})).ok());
}

TEST(TorchFile, BoundsWhatSharedDictionariesCost) {
  // Ten values in each of many levels, every one of them the level below: 10^levels visits.
  std::string body = "}q\x00"s;
  for (int level = 1; level < 8; ++level) {
    body += "}(";
    for (int i = 0; i < 10; ++i)
      body += Text(std::string(1, static_cast<char>('a' + i))) + "h" +
              std::string(1, static_cast<char>(level - 1));
    body += "uq" + std::string(1, static_cast<char>(level));
  }
  const std::string root = "}(" + Text("x") + "h\x07" + "u";
  // The levels are left on the stack below: taken as the values of one list.
  const auto state =
      ReadPickledState(Pickle("}(" + Text("y") + "](" + body + "e" + Text("z") + root + "u"));
  ExpectError(state.status(), kInvalid, "too many values");
}

TEST(TorchFile, ReadsSizesOf64Bits) {
  const auto file = TorchFile::Open(kWide);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 5u + 7 * 4);
  EXPECT_EQ(file->Find("model.norm.weight")->shape, std::vector<int64_t>{128});
}

// Each byte of directory, local headers and pickle changed: an error or a valid reading, never a
// read outside (the address sanitizer's part).
TEST(TorchFile, BearsDamageOfEveryByte) {
  const std::string file = ReadTextFile(kNarrow);
  ASSERT_TRUE(Parse(file).ok());
  for (size_t at = 0; at < file.size(); ++at) {
    for (const int change : {0x01, 0x80, 0xff}) {
      std::string damaged = file;
      damaged[at] = static_cast<char>(damaged[at] ^ change);
      const auto tensors = Parse(damaged);
      EXPECT_TRUE(tensors.ok() || tensors.status().code() == kInvalid) << at;
    }
  }
  for (size_t size = 0; size < file.size(); size += 7)
    EXPECT_FALSE(Parse(file.substr(0, size)).ok());
}

}  // namespace
}  // namespace qserve::worker::checkpoint
