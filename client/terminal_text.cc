#include "client/terminal_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace qserve::client {
namespace {

// The code point at the front of `text` and its length in bytes; length 0 where there is none.
struct CodePoint {
  uint32_t value = 0;
  size_t bytes = 0;
};

CodePoint First(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  if (text.empty()) return {};
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < bytes) return {};
  uint32_t value = lead & (0x7fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    value = value << 6 | (byte(i) & 0x3fu);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = value >= 0xd800 && value <= 0xdfff;
  if (value < kLeast[bytes] || value > 0x10ffff || surrogate) return {};
  return {value, bytes};
}

// Marks that make later text run the other way, or jump: what is shown would not be what is there.
bool Reorders(uint32_t c) {
  return (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0x200e ||
         c == 0x200f || c == 0x061c;
}

}  // namespace

std::string SafeForTerminal(std::string_view text) {
  std::string safe;
  safe.reserve(text.size());
  while (!text.empty()) {
    const CodePoint c = First(text);
    const size_t bytes = std::max<size_t>(c.bytes, 1);
    const bool shown_as_is = c.value == '\n' || c.value == '\t';
    if (c.bytes == 0 || (c.value < 0x20 && !shown_as_is) || c.value == 0x7f) {
      fmt::format_to(std::back_inserter(safe), "\\x{:02x}", static_cast<uint8_t>(text[0]));
    } else if ((c.value >= 0x80 && c.value < 0xa0) || Reorders(c.value)) {
      fmt::format_to(std::back_inserter(safe), "\\u{{{:x}}}", c.value);
    } else {
      safe.append(text.substr(0, bytes));
    }
    text.remove_prefix(bytes);
  }
  return safe;
}

std::string OneLine(std::string_view text) {
  std::string line = SafeForTerminal(text);
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::replace(line.begin(), line.end(), '\t', ' ');
  return line;
}

bool IsUtf8(std::string_view text) {
  while (!text.empty()) {
    const CodePoint c = First(text);
    if (c.bytes == 0) return false;
    text.remove_prefix(c.bytes);
  }
  return true;
}

}  // namespace qserve::client
