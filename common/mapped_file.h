// A read-only memory-mapped file. Nothing is read until touched, so a rank that touches only its
// slices reads only those. Const methods may be called from several threads.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/random_access_file.h"

namespace qserve {

class MappedFile {
 public:
  // Errors of RandomAccessFile::Open.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  // Valid as long as this object lives.
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Of what is mapped, whatever has its path by now.
  const FileIdentity& identity() const { return identity_; }

  // Gives back the pages that were touched so far: they count as this process' memory no more, stay
  // in the system's page cache, and come again where bytes are touched again.
  void DropPages() const;

 private:
  MappedFile(const std::byte* data, size_t size, FileIdentity identity)
      : data_(data), size_(size), identity_(identity) {}
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  FileIdentity identity_;
};

// A whole small text file (configuration), at most `max_bytes`; ResourceExhausted beyond.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

}  // namespace qserve
