#include "worker/group/secret.h"

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "common/status_macros.h"

namespace qserve::worker::group {
namespace {

absl::Status FillRandom(void* data, size_t size) {
  auto* bytes = static_cast<unsigned char*>(data);
  size_t done = 0;
  while (done < size) {
    const ssize_t got = getrandom(bytes + done, size - done, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::InternalError(std::string("getrandom: ") + std::strerror(errno));
    done += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> RandomSecret() {
  std::array<unsigned char, 32> bytes{};
  RETURN_IF_ERROR(FillRandom(bytes.data(), bytes.size()));
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : bytes) {
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 15]);
  }
  return text;
}

absl::StatusOr<uint64_t> RandomGeneration() {
  uint64_t value = 0;
  while (value == 0) RETURN_IF_ERROR(FillRandom(&value, sizeof(value)));
  return value;
}

bool SecretEquals(std::string_view offered, std::string_view expected) {
  // Every byte of the offer is looked at, whatever came before; a shorter or empty expectation is
  // read cyclically.
  volatile unsigned difference = offered.size() == expected.size() ? 0 : 1;
  for (size_t i = 0; i < offered.size(); ++i) {
    const char other = expected.empty() ? '\0' : expected[i % expected.size()];
    difference = difference | static_cast<unsigned>(static_cast<unsigned char>(offered[i] ^ other));
  }
  return difference == 0;
}

}  // namespace qserve::worker::group
