// See json_text.h. A first pass through the text checks depth and keys without building anything,
// so that hostile nesting costs no memory; the second builds the tree.
#include "worker/checkpoint/json_text.h"

#include <cmath>
#include <set>
#include <vector>

#include <fmt/format.h>

namespace qserve::worker::checkpoint {
namespace {

using Json = nlohmann::json;

class StructureCheck : public nlohmann::json_sax<Json> {
 public:
  const std::string& error() const { return error_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool start_array(size_t) override { return Enter(); }
  bool end_array() override { return Leave(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    error_ = fmt::format("the key \"{}\" appears twice in one object", Printable(name));
    return false;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    error_ = fmt::format("it is not JSON from byte {} on", position);
    return false;
  }

 private:
  bool Enter() {
    if (keys_.size() >= static_cast<size_t>(kMaxJsonDepth)) {
      error_ = fmt::format("it is nested deeper than {} levels", kMaxJsonDepth);
      return false;
    }
    keys_.emplace_back();
    return true;
  }
  bool Leave() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;  // of every open object; an array has an empty entry
  std::string error_;
};

}  // namespace

std::string Printable(std::string_view text) {
  constexpr size_t kMaxBytes = 120;
  std::string result(text.substr(0, kMaxBytes));
  for (char& character : result) {
    if (character < ' ' || character > '~') character = '?';
  }
  return text.size() > kMaxBytes ? result + "..." : result;
}

absl::StatusOr<Json> ParseJsonObject(std::string_view text, const std::string& what) {
  StructureCheck check;
  if (!Json::sax_parse(text.begin(), text.end(), &check)) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", what, check.error()));
  }
  Json root = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) {
    return absl::InvalidArgumentError(fmt::format("{}: a JSON object is expected", what));
  }
  return root;
}

const Json* Fields::Find(const char* key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool Fields::IsNull(const char* key) const {
  const auto found = object_.find(key);
  return found != object_.end() && found->is_null();
}

std::optional<int64_t> Fields::Integer(const char* key, int64_t min, int64_t max) {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  // An unsigned value beyond int64 would wrap when read as a signed one.
  const bool fits = value->is_number_integer() &&
                    (!value->is_number_unsigned() || value->get<uint64_t>() <= uint64_t{INT64_MAX});
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    Fail(fmt::format("{} must be an integer from {} to {}", key, min, max));
    return std::nullopt;
  }
  return value->get<int64_t>();
}

std::optional<double> Fields::Number(const char* key, double min, double max) {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : NAN;
  if (!(number >= min && number <= max)) {
    Fail(fmt::format("{} must be a number from {} to {}", key, min, max));
    return std::nullopt;
  }
  return number;
}

std::optional<bool> Fields::Bool(const char* key) {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    Fail(fmt::format("{} must be true or false", key));
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<std::string> Fields::String(const char* key) {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    Fail(fmt::format("{} must be a string", key));
    return std::nullopt;
  }
  return value->get<std::string>();
}

int64_t Fields::RequiredInteger(const char* key, int64_t min, int64_t max) {
  if (Find(key) == nullptr) {
    Fail(fmt::format("{} is missing", key));
    return min;
  }
  return Integer(key, min, max).value_or(min);
}

void Fields::Fail(const std::string& why) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(fmt::format("{}: {}", where_, why));
}

}  // namespace qserve::worker::checkpoint
