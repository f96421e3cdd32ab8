// Where the processes of a group find each other: keys set by one, waited for by others.
// Implemented by RendezvousClient (and in memory by tests); worker/comm's host group and Gloo
// connect through it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"

namespace qserve::worker::group {

class KeyValueStore {
 public:
  virtual ~KeyValueStore() = default;
  // Replaces an earlier value.
  virtual absl::Status Set(const std::string& key, const std::string& value) = 0;
  // Waits until the key is set; DeadlineExceeded after `timeout`.
  virtual absl::StatusOr<std::string> Get(const std::string& key, Duration timeout) = 0;
};

}  // namespace qserve::worker::group
