// Flags, environment and configuration file: one declaration, three sources, and refusals.
#include <cstdlib>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/cli/options.h"

namespace qserve::cli {
namespace {

struct Parsed {
  std::optional<int> exit_code;
  int max_queue = 7;
  bool verbose = false;
  std::vector<std::string> unknown;
};

Parsed ParseArguments(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "program");
  Parsed parsed;
  Options options("program", "A test");
  options.Add("max-queue", parsed.max_queue, "Requests that may wait");
  options.AddFlag("verbose", parsed.verbose, "Say more");
  parsed.exit_code = options.Parse(static_cast<int>(arguments.size()), arguments.data());
  parsed.unknown = options.UnknownVariables();
  return parsed;
}

TEST(Options, FlagsWinOverEnvironmentWinsOverFile) {
  const std::string path = testing::TempDir() + "/options.conf";
  std::ofstream(path) << "max-queue = 1\n";
  const std::string config = "--config=" + path;
  EXPECT_EQ(ParseArguments({}).max_queue, 7);
  EXPECT_EQ(ParseArguments({config.c_str()}).max_queue, 1);
  ::setenv("QSERVE_MAX_QUEUE", "2", 1);
  EXPECT_EQ(ParseArguments({config.c_str()}).max_queue, 2);
  EXPECT_EQ(ParseArguments({config.c_str(), "--max-queue", "3"}).max_queue, 3);
  ::unsetenv("QSERVE_MAX_QUEUE");
}

TEST(Options, RefusesUnknownFlagsAndKeysAndReportsUnknownVariables) {
  EXPECT_NE(ParseArguments({"--no-such-flag"}).exit_code.value_or(0), 0);
  EXPECT_NE(ParseArguments({"--max-queue", "many"}).exit_code.value_or(0), 0);
  const std::string path = testing::TempDir() + "/bad_options.conf";
  std::ofstream(path) << "no-such-key = 1\n";
  EXPECT_NE(ParseArguments({"--config", path.c_str()}).exit_code.value_or(0), 0);
  ::setenv("QSERVE_SERVICE_PORT", "80", 1);
  const Parsed parsed = ParseArguments({});
  EXPECT_FALSE(parsed.exit_code.has_value());
  EXPECT_THAT(parsed.unknown, testing::Contains("QSERVE_SERVICE_PORT"));
  ::unsetenv("QSERVE_SERVICE_PORT");
}

TEST(Options, HelpAndVersionExitWithZero) {
  EXPECT_EQ(ParseArguments({"--help"}).exit_code, 0);
  EXPECT_EQ(ParseArguments({"--version"}).exit_code, 0);
}

TEST(ParseHostPort, TakesNamesAndAddresses) {
  std::string host;
  EXPECT_EQ(ParseHostPort("localhost:50051", &host), 50051);
  EXPECT_EQ(host, "localhost");
  EXPECT_EQ(ParseHostPort("[::1]:8", &host), 8);
  EXPECT_EQ(host, "::1");
  for (const char* bad :
       {"", "host", ":1", "host:", "host:x", "host:65536", "host:-1", "host:1x"}) {
    EXPECT_EQ(ParseHostPort(bad, nullptr), std::nullopt) << bad;
  }
}

TEST(ParseBytes, TakesBinaryUnits) {
  EXPECT_EQ(ParseBytes("123"), 123);
  EXPECT_EQ(ParseBytes("2KiB"), 2048);
  EXPECT_EQ(ParseBytes("3GiB"), int64_t{3} << 30);
  for (const char* bad : {"", "-1", "1GB", "GiB", "9999999999GiB", "99999999999999999999"}) {
    EXPECT_EQ(ParseBytes(bad), std::nullopt) << bad;
  }
}

}  // namespace
}  // namespace qserve::cli
