// A key-value store between the threads of one process: tests and benchmarks whose ranks are
// threads.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>

#include "worker/group/key_value_store.h"

namespace qserve::worker::comm {

class MemoryStore final : public group::KeyValueStore {
 public:
  absl::Status Set(const std::string& key, const std::string& value) override {
    const std::lock_guard lock(mutex_);
    values_[key] = value;
    changed_.notify_all();
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Get(const std::string& key, Duration timeout) override {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, timeout, [&] { return values_.count(key) > 0; })) {
      return absl::DeadlineExceededError("nobody set " + key);
    }
    return values_.at(key);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
};

}  // namespace qserve::worker::comm
