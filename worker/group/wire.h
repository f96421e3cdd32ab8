// Encoding of the small messages between supervisors, ranks and the rendezvous: little-endian
// integers and length-prefixed byte strings. Used by every file of this room and by worker/comm's
// host group. Any thread; owns nothing but its buffer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace qserve::worker::group {

class WireWriter {
 public:
  void U8(uint8_t value) { Little(value, 1); }
  void U32(uint32_t value) { Little(value, 4); }
  void U64(uint64_t value) { Little(value, 8); }
  void Bytes(std::string_view value) {
    U32(static_cast<uint32_t>(value.size()));
    bytes_.append(value);
  }
  std::string Take() { return std::move(bytes_); }

 private:
  void Little(uint64_t value, int count) {
    for (int i = 0; i < count; ++i) bytes_.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
  }
  std::string bytes_;
};

// Reads what WireWriter wrote. Past the end, or for a string longer than allowed, everything is
// zero or empty from then on and complete() is false: callers read all fields first and ask once.
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : rest_(bytes) {}
  uint8_t U8() { return static_cast<uint8_t>(Little(1)); }
  uint32_t U32() { return static_cast<uint32_t>(Little(4)); }
  uint64_t U64() { return Little(8); }
  std::string Bytes(size_t max_size);
  // Everything asked for was there, and nothing is left.
  bool complete() const { return !failed_ && rest_.empty(); }

 private:
  uint64_t Little(size_t count);
  std::string_view rest_;
  bool failed_ = false;
};

}  // namespace qserve::worker::group
