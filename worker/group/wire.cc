#include "worker/group/wire.h"

namespace qserve::worker::group {

std::string WireReader::Bytes(size_t max_size) {
  const size_t size = U32();
  if (failed_ || size > max_size || size > rest_.size()) {
    failed_ = true;
    return {};
  }
  std::string value(rest_.substr(0, size));
  rest_.remove_prefix(size);
  return value;
}

uint64_t WireReader::Little(size_t count) {
  if (failed_ || rest_.size() < count) {
    failed_ = true;
    return 0;
  }
  uint64_t value = 0;
  for (size_t i = 0; i < count; ++i) {
    value |= uint64_t{static_cast<unsigned char>(rest_[i])} << (8 * i);
  }
  rest_.remove_prefix(count);
  return value;
}

}  // namespace qserve::worker::group
