// See progress.h.
#include "quantizer/progress.h"

#include <fmt/format.h>

#include <cstdio>
#include <utility>

#include "common/log.h"

namespace qserve::quantizer {
namespace {

constexpr std::chrono::seconds kLogInterval{10};

std::string Duration(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole >= 3600) return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
  if (whole >= 60) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} s", whole);
}

}  // namespace

Progress::Progress(std::string what, int64_t total, bool terminal)
    : what_(std::move(what)), total_(total), terminal_(terminal) {}

Progress::~Progress() {
  if (line_open_) std::fputs("\n", stderr);
}

void Progress::Step(int64_t done) {
  const Clock::time_point now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double left = seconds / static_cast<double>(done) * static_cast<double>(total_ - done);
  const std::string state =
      done == total_ ? fmt::format("{} of {}, {}", done, total_, Duration(seconds))
                     : fmt::format("{} of {}, about {} left", done, total_, Duration(left));
  if (terminal_) {
    std::fputs(fmt::format("\r\x1b[K{} {}", what_, state).c_str(), stderr);
    std::fflush(stderr);
    line_open_ = true;
  } else if (done == total_ || now - last_ >= kLogInterval) {
    LOG_INFO("{} {}", what_, state);
    last_ = now;
  }
}

}  // namespace qserve::quantizer
