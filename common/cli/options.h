// Command lines of every binary: one declaration gives the flag, its environment variable
// (--max-queue is QSERVE_MAX_QUEUE), its key in a --config file (max-queue = 1024, or as
// YAML max-queue: 1024), its help and its parsing. Flags win over the environment, the environment
// over the file. Unknown flags and keys are refused; unknown QSERVE_* variables are only reported,
// because Kubernetes injects some.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace qserve::cli {

class Options {
 public:
  // `description` heads --help; --version and --config are added.
  Options(const std::string& program, const std::string& description);

  // Adds --`name`; `value` holds the default and receives the result. Returns the CLI11 option for
  // checks.
  template <class T>
  CLI::Option* Add(const std::string& name, T& value, const std::string& help) {
    CLI::Option* option = app_.add_option("--" + name, value, help)->envname(Environment(name));
    if constexpr (!std::is_same_v<T, std::vector<std::string>>) option->capture_default_str();
    return option;
  }
  CLI::Option* AddFlag(const std::string& name, bool& value, const std::string& help) {
    return app_.add_flag("--" + name, value, help)->envname(Environment(name));
  }

  CLI::App& app() { return app_; }

  // Parses. Nothing: go on; otherwise the code to exit with, help or the one-line error having been
  // printed.
  std::optional<int> Parse(int argc, const char* const* argv);

  // QSERVE_* variables of the environment that no option knows; valid after Parse.
  std::vector<std::string> UnknownVariables() const;

 private:
  std::string Environment(const std::string& name);

  CLI::App app_;
  std::map<std::string, std::string> variables_;  // environment variable -> flag
};

// "50051" of "host:50051", "[::1]:50051"; nothing if there is no valid port. `host` may be null.
std::optional<int> ParseHostPort(const std::string& address, std::string* host);

// Bytes of "4GiB", "512MiB", "1000000"; nothing if malformed or over 2^62.
std::optional<int64_t> ParseBytes(const std::string& text);

}  // namespace qserve::cli
