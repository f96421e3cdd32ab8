// One measurement as a line of JSON, for programs that carry no library for it. Pure; any thread.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace qserve::bench {

class JsonLine {
 public:
  // Every line says what it is.
  explicit JsonLine(std::string_view what) { Text("what", what); }

  JsonLine& Text(std::string_view key, std::string_view value) {
    Key(key) += '"';
    for (const char c : value) {
      if (c == '"' || c == '\\') text_ += '\\';
      text_ += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    text_ += '"';
    return *this;
  }
  JsonLine& Whole(std::string_view key, int64_t value) {
    Key(key) += std::to_string(value);
    return *this;
  }
  // null where it is no number, which JSON cannot say otherwise.
  JsonLine& Number(std::string_view key, double value, int digits) {
    char digits_text[64];
    std::snprintf(digits_text, sizeof(digits_text), "%.*f", digits, value);
    Key(key) += std::isfinite(value) && std::fabs(value) < 1e30 ? digits_text : "null";
    return *this;
  }
  std::string Finish() const { return text_ + "}"; }

 private:
  std::string& Key(std::string_view key) {
    text_ += text_.empty() ? "{\"" : ", \"";
    text_ += key;
    return text_ += "\": ";
  }
  std::string text_;
};

}  // namespace qserve::bench
