// JSON of configuration files, read defensively: depth limited, duplicate keys refused, every error
// names the file. Called by the readers of config.json, generation_config.json and the index of
// sharded checkpoints, on whatever thread opens a model; owns nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qserve::worker::checkpoint {

inline constexpr int kMaxJsonDepth = 32;

// A name from a file as it may stand in an error or a log: cut to 120 bytes, everything but
// printable ASCII replaced by '?'.
std::string Printable(std::string_view text);

// The object that `text` is. `what` names it in errors. InvalidArgument for anything else: bad
// syntax, nesting deeper than kMaxJsonDepth, a key twice in one object, a root that is no object.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, const std::string& what);

// Typed access to the members of one object. A null member counts as absent. The first error is
// kept (`status`), later ones are dropped, and a getter that fails returns nothing; so a reader
// gets all its fields and then asks once.
class Fields {
 public:
  // Keeps a reference to `object`.
  Fields(const nlohmann::json& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  // The member or null.
  const nlohmann::json* Find(const char* key) const;
  bool IsNull(const char* key) const;

  std::optional<int64_t> Integer(const char* key, int64_t min, int64_t max);
  std::optional<double> Number(const char* key, double min, double max);  // finite
  std::optional<bool> Bool(const char* key);
  std::optional<std::string> String(const char* key);

  // As Integer, but absent is an error.
  int64_t RequiredInteger(const char* key, int64_t min, int64_t max);

  void Fail(const std::string& why);
  const absl::Status& status() const { return status_; }
  const std::string& where() const { return where_; }

 private:
  const nlohmann::json& object_;
  std::string where_;
  absl::Status status_;
};

}  // namespace qserve::worker::checkpoint
