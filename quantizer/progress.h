// How far a long job is and how much time is left: one line rewritten in place on a terminal, a log
// line now and then elsewhere. Used by the pipeline on its thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace qserve::quantizer {

class Progress {
 public:
  // `total` steps; `terminal`: standard error is one and is written to, otherwise the log.
  Progress(std::string what, int64_t total, bool terminal);
  // Ends the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Step(int64_t done);

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  int64_t total_;
  bool terminal_;
  bool line_open_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

}  // namespace qserve::quantizer
