// See config_file.h.
#include "common/cli/config_file.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <iterator>
#include <sstream>
#include <string>
#include <string_view>

namespace qserve::cli {
namespace {

// YAML's mark behind a key is a colon, TOML's an equals sign, and TOML's sections are in brackets.
bool IsYaml(std::string_view text) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string_view::npos || line[first] == '#') continue;
    if (line.substr(first, 3) == "---" || line[first] == '{' || line[first] == '%') return true;
    const size_t mark = line.find_first_of("=:", first);
    return mark != std::string_view::npos && line[mark] == ':';
  }
  return false;
}

[[noreturn]] void Refuse(const YAML::Mark& mark, const std::string& problem) {
  throw CLI::ConfigError(fmt::format("line {}: {}", mark.line + 1, problem));
}

CLI::ConfigItem Item(const YAML::Node& key, const YAML::Node& value) {
  if (!key.IsScalar()) Refuse(key.Mark(), "a key must be a name");
  CLI::ConfigItem item;
  item.name = key.Scalar();
  if (value.IsScalar()) {
    item.inputs.push_back(value.Scalar());
    return item;
  }
  if (!value.IsSequence() || value.size() == 0)
    Refuse(key.Mark(), fmt::format("{} needs a value or a list of values", item.name));
  for (const YAML::Node& element : value) {
    if (!element.IsScalar())
      Refuse(element.Mark(), fmt::format("{} must be a list of values", item.name));
    item.inputs.push_back(element.Scalar());
  }
  return item;
}

}  // namespace

std::vector<CLI::ConfigItem> ConfigFile::from_config(std::istream& input) const {
  const std::string text(std::istreambuf_iterator<char>(input), {});
  if (!IsYaml(text)) {
    std::istringstream lines(text);
    return CLI::ConfigTOML::from_config(lines);
  }
  // yaml-cpp reports by exception as CLI11 does.
  try {
    const YAML::Node document = YAML::Load(text);
    if (!document.IsMap()) Refuse(document.Mark(), "a mapping of keys to values is expected");
    std::vector<CLI::ConfigItem> found;
    for (const auto& entry : document) found.push_back(Item(entry.first, entry.second));
    return found;
  } catch (const YAML::Exception& error) {
    Refuse(error.mark, error.msg);
  }
}

}  // namespace qserve::cli
