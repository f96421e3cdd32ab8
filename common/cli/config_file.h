// Configuration files of every binary, as CLI11 asks for them: "key = value" lines (TOML), or a
// YAML mapping of keys to values or lists of values, JSON included. Called by options.cc.
#pragma once

#include <istream>
#include <vector>

#include <CLI/CLI.hpp>

namespace qserve::cli {

class ConfigFile : public CLI::ConfigTOML {
 public:
  // Which of the two it is tells the first line that says something. Throws CLI::ParseError, whose
  // text names the line, for YAML that cannot be read or has another shape.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;
};

}  // namespace qserve::cli
