// See zip_directory.h. Field names are those of PKWARE's APPNOTE, sections 4.3.7 to 4.3.16.
#include "worker/checkpoint/zip_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "common/status_macros.h"
#include "worker/checkpoint/json_text.h"

namespace qserve::worker::checkpoint {
namespace {

constexpr uint64_t kEndBytes = 22, kEnd64Bytes = 56, kLocatorBytes = 20;
constexpr uint64_t kEntryBytes = 46, kLocalBytes = 30;
constexpr uint32_t kEndMagic = 0x06054b50, kEnd64Magic = 0x06064b50, kLocatorMagic = 0x07064b50;
constexpr uint32_t kEntryMagic = 0x02014b50, kLocalMagic = 0x04034b50;
constexpr uint64_t kMaxCommentBytes = 0xffff;
constexpr uint64_t kMaxEntries = 1 << 20;
constexpr uint16_t kZip64Extra = 1;

absl::Status Bad(const std::string& why) {
  return absl::InvalidArgumentError(fmt::format("zip archive: {}", why));
}

// Little-endian numbers of a file, never beyond its end.
class Bytes {
 public:
  explicit Bytes(std::span<const std::byte> file) : file_(file) {}
  uint64_t size() const { return file_.size(); }
  bool Has(uint64_t at, uint64_t count) const { return at <= size() && count <= size() - at; }
  // The caller has asked Has.
  uint64_t Number(uint64_t at, int bytes) const {
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) {
      const auto byte =
          std::to_integer<uint64_t>(file_[static_cast<size_t>(at) + static_cast<size_t>(i)]);
      value |= byte << (8 * i);
    }
    return value;
  }
  std::string Text(uint64_t at, uint64_t count) const {
    return {reinterpret_cast<const char*>(file_.data()) + at, static_cast<size_t>(count)};
  }

 private:
  std::span<const std::byte> file_;
};

struct Directory {
  uint64_t begin = 0, size = 0, entries = 0;
};

std::optional<uint64_t> FindEnd(const Bytes& file) {
  if (file.size() < kEndBytes) return std::nullopt;
  const uint64_t last = file.size() - kEndBytes;
  for (uint64_t back = 0; back <= std::min(last, kMaxCommentBytes); ++back) {
    const uint64_t at = last - back;
    if (file.Number(at, 4) == kEndMagic && file.Number(at + 20, 2) == back) return at;
  }
  return std::nullopt;
}

absl::StatusOr<Directory> FindDirectory(const Bytes& file) {
  const std::optional<uint64_t> end = FindEnd(file);
  if (!end) return Bad("there is no end of directory (is the file truncated?)");
  Directory directory = {.begin = file.Number(*end + 16, 4),
                         .size = file.Number(*end + 12, 4),
                         .entries = file.Number(*end + 10, 2)};
  if (file.Number(*end + 4, 2) != file.Number(*end + 6, 2)) return Bad("it is split");
  if (*end >= kLocatorBytes && file.Number(*end - kLocatorBytes, 4) == kLocatorMagic) {
    const uint64_t end64 = file.Number(*end - kLocatorBytes + 8, 8);
    if (!file.Has(end64, kEnd64Bytes) || file.Number(end64, 4) != kEnd64Magic)
      return Bad("its 64-bit end of directory is not where it should be");
    directory = {.begin = file.Number(end64 + 48, 8),
                 .size = file.Number(end64 + 40, 8),
                 .entries = file.Number(end64 + 32, 8)};
  }
  if (!file.Has(directory.begin, directory.size)) return Bad("its directory is outside the file");
  if (directory.entries > kMaxEntries || directory.entries > directory.size / kEntryBytes)
    return Bad(fmt::format("{} entries are claimed", directory.entries));
  return directory;
}

// Sizes and offset that did not fit 32 bits stand in an extra field, in this order.
bool ReadZip64(const Bytes& file, uint64_t at, uint64_t end, uint64_t* const values[3]) {
  while (end - at >= 4) {
    const uint64_t id = file.Number(at, 2), size = file.Number(at + 2, 2);
    at += 4;
    if (size > end - at) return false;
    if (id == kZip64Extra) {
      uint64_t next = at;
      for (int i = 0; i < 3; ++i) {
        if (*values[i] != 0xffffffff) continue;
        if (at + size - next < 8) return false;
        *values[i] = file.Number(next, 8);
        next += 8;
      }
      return true;
    }
    at += size;
  }
  return true;
}

// The entry whose record begins at `at`; moves `at` behind it.
absl::StatusOr<ZipEntry> ReadEntry(const Bytes& file, uint64_t& at, uint64_t end) {
  if (end - at < kEntryBytes || file.Number(at, 4) != kEntryMagic)
    return Bad("its directory is damaged");
  const uint64_t flags = file.Number(at + 8, 2), method = file.Number(at + 10, 2);
  uint64_t packed = file.Number(at + 20, 4), size = file.Number(at + 24, 4);
  const uint64_t name_bytes = file.Number(at + 28, 2), extra_bytes = file.Number(at + 30, 2);
  const uint64_t comment_bytes = file.Number(at + 32, 2);
  uint64_t local = file.Number(at + 42, 4);
  const uint64_t name_at = at + kEntryBytes, extra_at = name_at + name_bytes;
  if (end - name_at < name_bytes + extra_bytes + comment_bytes)
    return Bad("its directory is damaged");
  ZipEntry entry = {.name = file.Text(name_at, name_bytes)};
  const std::string name = Printable(entry.name);
  uint64_t* const wide[3] = {&size, &packed, &local};
  if (!ReadZip64(file, extra_at, extra_at + extra_bytes, wide))
    return Bad(fmt::format("{}: the 64-bit sizes are damaged", name));
  if ((flags & 1) != 0) return Bad(fmt::format("{} is encrypted", name));
  if (method != 0 || packed != size)
    return Bad(fmt::format("{} is compressed; torch.save stores its entries", name));
  if (!file.Has(local, kLocalBytes) || file.Number(local, 4) != kLocalMagic)
    return Bad(fmt::format("{} is not where the directory says", name));
  const uint64_t begin =
      local + kLocalBytes + file.Number(local + 26, 2) + file.Number(local + 28, 2);
  if (!file.Has(begin, size)) return Bad(fmt::format("{} is outside the file", name));
  entry.begin = static_cast<size_t>(begin);
  entry.size = static_cast<size_t>(size);
  at = extra_at + extra_bytes + comment_bytes;
  return entry;
}

}  // namespace

absl::StatusOr<std::vector<ZipEntry>> ReadZipDirectory(std::span<const std::byte> bytes) {
  const Bytes file(bytes);
  ASSIGN_OR_RETURN(const Directory directory, FindDirectory(file));
  std::vector<ZipEntry> entries;
  entries.reserve(static_cast<size_t>(directory.entries));
  uint64_t at = directory.begin;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    ASSIGN_OR_RETURN(ZipEntry entry, ReadEntry(file, at, directory.begin + directory.size));
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(),
            [](const ZipEntry& a, const ZipEntry& b) { return a.name < b.name; });
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].name == entries[i - 1].name)
      return Bad(fmt::format("{} is there twice", Printable(entries[i].name)));
  }
  return entries;
}

}  // namespace qserve::worker::checkpoint
