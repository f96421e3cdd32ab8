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

// What --max-queue and the exit code are with this file.
Parsed ParseFile(const std::string& text) {
  const std::string path = testing::TempDir() + "/file.conf";
  std::ofstream(path) << text;
  return ParseArguments({"--config", path.c_str()});
}

TEST(Options, FilesMayBeYaml) {
  for (const char* text : {"max-queue: 12", "---\nmax-queue: 12\n", "# a = b\n\nmax-queue: 12 # x",
                           R"({"max-queue": 12, "verbose": true})", "\"max-queue\": '12'\r\n"}) {
    const Parsed parsed = ParseFile(text);
    EXPECT_FALSE(parsed.exit_code.has_value()) << text;
    EXPECT_EQ(parsed.max_queue, 12) << text;
  }
  EXPECT_TRUE(ParseFile("verbose: true\nmax-queue: 1").verbose);
  EXPECT_FALSE(ParseFile("verbose: false\nmax-queue: 1").verbose);
  EXPECT_EQ(ParseFile("# of: nothing\nmax-queue = 13").max_queue, 13);
  EXPECT_EQ(ParseFile("").exit_code, std::nullopt);
}

TEST(Options, YamlListsAreListsOfValues) {
  std::vector<std::string> workers;
  Options options("program", "A test");
  options.Add("workers", workers, "Addresses");
  const std::string path = testing::TempDir() + "/list.yaml";
  std::ofstream(path) << "workers:\n  - a:1\n  - \"b c:2\"\n";
  const char* const arguments[] = {"program", "--config", path.c_str()};
  EXPECT_FALSE(options.Parse(3, arguments).has_value());
  EXPECT_THAT(workers, testing::ElementsAre("a:1", "b c:2"));
}

TEST(Options, RefusesYamlOfAnotherShape) {
  for (const char* text :
       {"max-queue: {a: 1}", "max-queue: many", "max-queue:", "max-queue: [[1]]", "max-queue: []",
        "---\n- max-queue\n", "no-such-key: 1", "max-queue: [1", "max-queue: *a", "? [a]\n: 1",
        "max-queue: 1\n bad", "{", "---\n", "max-queue: [1, 2]"}) {
    EXPECT_NE(ParseFile(text).exit_code.value_or(0), 0) << text;
  }
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
