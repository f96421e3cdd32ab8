#include "common/cli/options.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <memory>

#include <unistd.h>

#include "common/cli/config_file.h"
#include "common/cli/version.h"

namespace qserve::cli {

Options::Options(const std::string& program, const std::string& description)
    : app_(description, program) {
  app_.set_version_flag("--version", std::string(kVersion));
  app_.set_config("--config", "", "Read options from this file (key = value, or YAML)");
  app_.config_formatter(std::make_shared<ConfigFile>());
  app_.allow_extras(false);
  app_.allow_config_extras(CLI::config_extras_mode::error);
  app_.get_formatter()->column_width(38);
}

std::string Options::Environment(const std::string& name) {
  std::string variable = "QSERVE_" + name;
  std::transform(variable.begin(), variable.end(), variable.begin(), [](unsigned char c) {
    return c == '-' ? '_' : static_cast<char>(std::toupper(c));
  });
  variables_[variable] = "--" + name;
  return variable;
}

std::optional<int> Options::Parse(int argc, const char* const* argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  // CLI11 would let the file win over the environment: variables are made flags, unless the flag
  // itself is there.
  const std::vector<std::string> given = arguments;
  for (const auto& [variable, flag] : variables_) {
    const char* value = std::getenv(variable.c_str());
    const bool overridden =
        std::any_of(given.begin(), given.end(), [&flag = flag](const std::string& argument) {
          return argument == flag || argument.rfind(flag + "=", 0) == 0;
        });
    if (value != nullptr && !overridden) arguments.push_back(flag + "=" + value);
  }
  std::reverse(arguments.begin(), arguments.end());  // the order that CLI11 takes a vector in
  // CLI11 reports by exception; it ends here.
  try {
    app_.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return app_.exit(error);
  }
  return std::nullopt;
}

std::vector<std::string> Options::UnknownVariables() const {
  std::vector<std::string> unknown;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    if (name.rfind("QSERVE_", 0) == 0 && !variables_.contains(name)) unknown.push_back(name);
  }
  return unknown;
}

std::optional<int> ParseHostPort(const std::string& address, std::string* host) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) return std::nullopt;
  int port = 0;
  const char* end = address.data() + address.size();
  const auto [parsed_end, error] = std::from_chars(address.data() + colon + 1, end, port);
  if (error != std::errc() || parsed_end != end || port < 0 || port > 65535) return std::nullopt;
  if (host != nullptr) {
    *host = address.substr(0, colon);
    if (host->size() > 2 && host->front() == '[' && host->back() == ']')
      *host = host->substr(1, host->size() - 2);
  }
  return port;
}

std::optional<int64_t> ParseBytes(const std::string& text) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || value < 0) return std::nullopt;
  const std::string unit(rest, end);
  int shift = 0;
  if (unit == "KiB") {
    shift = 10;
  } else if (unit == "MiB") {
    shift = 20;
  } else if (unit == "GiB") {
    shift = 30;
  } else if (!unit.empty()) {
    return std::nullopt;
  }
  if (value > (int64_t{1} << (62 - shift))) return std::nullopt;
  return value << shift;
}

}  // namespace qserve::cli
