#include "worker/text/ffi.h"

namespace qserve::worker::text {

std::string FfiBytes::ToString() const {
  return std::string(reinterpret_cast<const char*>(bytes_.data),
                     bytes_.data == nullptr ? 0 : bytes_.size);
}

std::vector<int32_t> FfiIds::ToVector() const {
  if (ids_.data == nullptr) return {};
  return std::vector<int32_t>(ids_.data, ids_.data + ids_.size);
}

absl::Status FfiStatus(QserveTextCode code, const FfiBytes& error) {
  switch (code) {
    case QSERVE_TEXT_OK:
      return absl::OkStatus();
    case QSERVE_TEXT_INVALID:
    case QSERVE_TEXT_LIMIT:
      return absl::InvalidArgumentError(error.ToString());
    default:
      return absl::InternalError(error.ToString());
  }
}

}  // namespace qserve::worker::text
