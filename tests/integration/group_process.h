// A supervisor as a child process of a test: what it prints, its ranks, its end. Every wait has a
// deadline, and whatever happens nothing is left running.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace qserve::worker {

inline constexpr std::chrono::seconds kPatience(60);

inline bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

class GroupProcess {
 public:
  // `command`: program and arguments.
  explicit GroupProcess(std::vector<std::string> command)
      : output_path_(::testing::TempDir() + "qserve_group_" + std::to_string(getpid()) + "_" +
                     std::to_string(++Count())) {
    pid_ = fork();
    if (pid_ == 0) {
      std::vector<char*> arguments;
      for (std::string& argument : command) arguments.push_back(argument.data());
      arguments.push_back(nullptr);
      if (std::freopen(output_path_.c_str(), "w", stdout) == nullptr) _exit(127);
      dup2(1, 2);
      execvp(arguments[0], arguments.data());
      _exit(127);
    }
  }
  ~GroupProcess() {
    if (!status_.has_value()) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    // However it was to end: a report of a sanitizer in it, or in its ranks, is a failure.
    EXPECT_EQ(Output().find("Sanitizer:"), std::string::npos);
    EXPECT_EQ(Output().find("runtime error:"), std::string::npos);
    if (::testing::Test::HasFailure()) std::fprintf(stderr, "%s\n", Output().c_str());
    std::remove(output_path_.c_str());
  }
  GroupProcess(const GroupProcess&) = delete;
  GroupProcess& operator=(const GroupProcess&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int number) const { kill(pid_, number); }
  std::string Output() const {
    std::ostringstream text;
    text << std::ifstream(output_path_).rdbuf();
    return text.str();
  }
  bool Says(const std::string& text) const { return Output().find(text) != std::string::npos; }
  bool WaitsUntilItSays(const std::string& text) const {
    return Eventually([&] { return Says(text); });
  }
  // The process of a rank, from the supervisor's log.
  pid_t RankPid(int rank) const {
    const std::string output = Output();
    const std::string start = "rank " + std::to_string(rank) + " of ";
    const size_t line = output.find(start);
    const size_t number = output.find("is process ", line);
    if (line == std::string::npos || number == std::string::npos) return -1;
    return std::atoi(output.c_str() + number + 11);
  }
  // Its exit status; nullopt if it does not end or was killed.
  std::optional<int> ExitStatus() {
    const bool ended = Eventually([&] {
      if (status_.has_value()) return true;
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG) != pid_) return false;
      status_ = status;
      return true;
    });
    if (!ended || !WIFEXITED(*status_)) return std::nullopt;
    return WEXITSTATUS(*status_);
  }

 private:
  static int& Count() {
    static int count = 0;
    return count;
  }
  pid_t pid_ = -1;
  std::optional<int> status_;
  std::string output_path_;
};

// Not there any more, or a corpse that awaits its new parent.
inline bool IsGone(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(file, text)) return true;
  const size_t name_end = text.rfind(')');
  return name_end != std::string::npos && text.substr(name_end + 2, 1) == "Z";
}

}  // namespace qserve::worker
