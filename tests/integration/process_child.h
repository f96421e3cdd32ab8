// A program of the project as child of a test: what it prints, its ranks, its end. Whatever a test
// does, the destructor kills and reaps it, and kills the ranks it has named.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace qserve::integration {

// Not there any more, or a corpse that awaits its new parent.
inline bool IsGone(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(file, text)) return true;
  const size_t name_end = text.rfind(')');
  return name_end != std::string::npos && text.substr(name_end + 2, 1) == "Z";
}

class Child {
 public:
  // A program without a slash is looked for on the PATH.
  explicit Child(std::vector<std::string> command) {
    static int count = 0;
    output_path_ = ::testing::TempDir() + "qserve_process_" + std::to_string(getpid()) + "_" +
                   std::to_string(++count);
    std::vector<char*> arguments;
    for (std::string& argument : command) arguments.push_back(argument.data());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, output_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    EXPECT_EQ(posix_spawnp(&pid_, arguments[0], &files, nullptr, arguments.data(), environ), 0)
        << arguments[0];
    posix_spawn_file_actions_destroy(&files);
  }
  ~Child() {
    for (int rank = 0; rank < 8; ++rank) {
      if (const pid_t pid = RankPid(rank); pid > 0 && !IsGone(pid)) kill(pid, SIGKILL);
    }
    if (!status_ && pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    // However it was to end: a report of a sanitizer in it, or in its ranks, is a failure.
    EXPECT_EQ(Output().find("Sanitizer:"), std::string::npos);
    EXPECT_EQ(Output().find("runtime error:"), std::string::npos);
    if (::testing::Test::HasFailure()) std::fprintf(stderr, "%s\n", Output().c_str());
    std::filesystem::remove(output_path_);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  std::string Output() const {
    std::ostringstream text;
    text << std::ifstream(output_path_).rdbuf();
    return text.str();
  }
  // False if it ends before it says so.
  bool Says(const std::string& text) {
    return Wait([&] { return Output().find(text) != std::string::npos || Ended(); }) &&
           Output().find(text) != std::string::npos;
  }
  // The number that follows `text` in what it has said, -1 if there is none.
  int NumberAfter(const std::string& text, size_t from = 0) const {
    const std::string output = Output();
    const size_t place = output.find(text, from);
    return place == std::string::npos ? -1 : std::atoi(output.c_str() + place + text.size());
  }
  pid_t RankPid(int rank) const {
    const size_t line = Output().find("rank " + std::to_string(rank) + " of ");
    return line == std::string::npos ? -1 : NumberAfter("is process ", line);
  }
  // Its exit status; 128 + the signal that ended it; nullopt if it does not end.
  std::optional<int> ExitStatus() {
    if (!Wait([this] { return Ended(); })) return std::nullopt;
    return WIFEXITED(*status_) ? WEXITSTATUS(*status_) : 128 + WTERMSIG(*status_);
  }
  static bool Wait(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return true;
  }

 private:
  bool Ended() {
    int status = 0;
    if (!status_ && waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
    return status_.has_value();
  }
  pid_t pid_ = -1;
  std::optional<int> status_;
  std::string output_path_;
};

}  // namespace qserve::integration
