// See setting.h.
#include "quantizer/evaluate/setting.h"

#include <fmt/format.h>

#include "common/status_macros.h"

namespace qserve::quantizer {
namespace {

// Takes `prefix` and one of the numbers from the front of `rest`; 0 if they do not stand there.
int TakeBits(std::string_view& rest, std::string_view prefix) {
  if (!rest.starts_with(prefix)) return 0;
  rest.remove_prefix(prefix.size());
  for (const int bits : {16, 8, 4}) {
    const std::string digits = std::to_string(bits);
    if (!rest.starts_with(digits)) continue;
    rest.remove_prefix(digits.size());
    return bits;
  }
  return 0;
}

}  // namespace

absl::StatusOr<Setting> ParseSetting(std::string_view name) {
  Setting setting = {.name = std::string(name)};
  if (name == "served") {
    setting.served = true;
    return setting;
  }
  std::string_view rest = name;
  setting.weight_bits = TakeBits(rest, "w");
  setting.activation_bits = TakeBits(rest, "a");
  setting.kv_bits = TakeBits(rest, "kv");
  const bool complete = setting.weight_bits != 0 && setting.activation_bits > 4 &&
                        setting.kv_bits != 0 && rest.empty();
  if (complete) return setting;
  return absl::InvalidArgumentError(fmt::format(
      "setting \"{}\" is unknown: \"served\", or w16, w8 or w4, then a16 or a8, then kv16, kv8 or "
      "kv4, such as w4a8kv4",
      name));
}

absl::StatusOr<std::vector<Setting>> ParseSettings(std::string_view names) {
  std::vector<Setting> settings;
  while (true) {
    const size_t comma = names.find(',');
    ASSIGN_OR_RETURN(Setting setting, ParseSetting(names.substr(0, comma)));
    settings.push_back(std::move(setting));
    if (comma == std::string_view::npos) return settings;
    names.remove_prefix(comma + 1);
  }
}

}  // namespace qserve::quantizer
