// xxHash, for digests that need no secrecy: plans, prefix blocks, checkpoints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace qserve {

// 64-bit hash of bytes, the same on every machine.
uint64_t HashBytes(std::span<const std::byte> bytes, uint64_t seed = 0);

template <class T>
uint64_t HashSpan(std::span<const T> values, uint64_t seed = 0) {
  return HashBytes(std::as_bytes(values), seed);
}

// 16 lower-case hexadecimal digits.
std::string HexDigest(uint64_t hash);

}  // namespace qserve
