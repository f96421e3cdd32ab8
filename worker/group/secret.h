// Secrets of a group: made from the kernel's random numbers, compared in time that does not depend
// on where they differ. Used by the rendezvous and by worker/comm's host group. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace qserve::worker::group {

// 32 random bytes, as 64 hexadecimal digits.
absl::StatusOr<std::string> RandomSecret();

// A random number that is not zero.
absl::StatusOr<uint64_t> RandomGeneration();

// The time taken depends on the length of `offered` only.
bool SecretEquals(std::string_view offered, std::string_view expected);

}  // namespace qserve::worker::group
