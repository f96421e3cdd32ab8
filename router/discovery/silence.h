// How long a peer has said nothing while this process was awake to hear it. A process that was
// itself stopped, starved or on a paused machine must not take its own sleep for the silence of all
// the others, whose words wait unread. Pure; guarded by its owner.
#pragma once

#include <algorithm>

#include "common/clock.h"

namespace qserve::router {

class Silence {
 public:
  // Checks are due that far apart; of a longer gap between two of them, twice that counts.
  explicit Silence(Duration check_interval) : longest_turn_(2 * check_interval) {}

  // The peer spoke, or waiting for it begins.
  void Break(TimePoint now) {
    checked_ = now;
    silent_ = Duration::zero();
  }
  // The silence so far.
  Duration Check(TimePoint now) {
    silent_ += std::min(now - checked_, longest_turn_);
    checked_ = now;
    return silent_;
  }

 private:
  const Duration longest_turn_;
  TimePoint checked_{};
  Duration silent_{};
};

}  // namespace qserve::router
