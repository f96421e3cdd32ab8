// The dictionary of tensors in the pickle of a torch.save archive, read without executing anything:
// a small part of the pickle language is understood, of globals only those that a state dictionary
// needs, and these are recognized, not called. Called by torch_file.cc and fuzzers; pure.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/safetensors.h"

namespace qserve::worker::checkpoint {

// A tensor as a view of a storage, an entry of the archive.
struct PickledTensor {
  std::string name;     // path of dictionary keys, joined by '.'
  std::string storage;  // the entry's name behind ".../data/"
  Dtype dtype = Dtype::kF32;
  int64_t storage_elements = 0;
  int64_t offset = 0;  // in elements
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements, not negative
};

inline constexpr size_t kMaxPickleBytes = size_t{1} << 28;

// Every tensor of the dictionary and of dictionaries within it; other values (numbers, texts,
// lists) are passed over. Each tensor lies within its storage. InvalidArgument for any other opcode
// or global, by name, for what is damaged, and for two tensors of one name.
absl::StatusOr<std::vector<PickledTensor>> ReadPickledState(std::string_view pickle);

}  // namespace qserve::worker::checkpoint
