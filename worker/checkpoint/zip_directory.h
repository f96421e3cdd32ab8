// What lies where in a zip archive that stores its entries uncompressed, as torch.save writes it
// (zip64 too). Called by torch_file.cc and fuzzers; pure, looks at the directory alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace qserve::worker::checkpoint {

struct ZipEntry {
  std::string name;
  size_t begin = 0;  // of its bytes in the file
  size_t size = 0;
};

// Sorted by name. Every entry lies within the file and is plain: InvalidArgument for archives that
// are truncated, split, encrypted or hold compressed entries or a name twice. Checksums are not
// looked at.
absl::StatusOr<std::vector<ZipEntry>> ReadZipDirectory(std::span<const std::byte> file);

}  // namespace qserve::worker::checkpoint
