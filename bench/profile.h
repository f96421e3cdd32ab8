// Where the time of a step goes: a backend that forwards every call to another one and notes how
// long each took, and the table that is made of it. For backends that compute inside the call; the
// time of an operation is that of its call, the wait for its last thread included. Called by
// qserve-bench and tests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "nlohmann/json.hpp"
#include "worker/exec/rank.h"

namespace qserve::bench {

// Seconds and calls of one kind of operation.
struct OpTime {
  std::string name;  // "attention"; of linears the shape too
  int64_t calls = 0;
  double seconds = 0;
};

// One step. `seconds` lasts from the end of the step before to the end of this one, so that all
// that is done between steps counts as well.
struct StepTime {
  int64_t tokens = 0;
  bool decodes = false;  // one token of each sequence
  double seconds = 0;
  double inside = 0;  // from the step's own beginning
  std::vector<OpTime> ops;
};

// What was noted. The thread that runs steps writes, any reads.
class Profile {
 public:
  void Add(StepTime step);
  std::vector<StepTime> Take();  // all since the last call
  // Packing, which belongs to no step.
  void AddLoading(const std::string& name, double seconds);
  std::vector<OpTime> loading() const;

 private:
  mutable std::mutex mutex_;
  std::vector<StepTime> steps_;
  std::vector<OpTime> loading_;
};

// Adds a call to the entry of that name, which is appended if it is new.
void AddCall(const std::string& name, double seconds, std::vector<OpTime>& ops);

// Makes what `inner` makes, and lets it note into `profile`, which outlives the backend.
worker::exec::BackendFactory ProfiledBackend(Profile& profile, worker::exec::BackendFactory inner);

// Of the decoding steps of `tokens` sequences among `steps`: each operation's median time in a step
// and its share of the median step, and the remainder: what a step takes beyond its operations.
struct ProfileTable {
  struct Row {
    std::string name;
    double calls = 0;  // a step
    double seconds = 0;
    double share = 0;
  };
  int64_t steps = 0;
  double step_seconds = 0;
  std::vector<Row> rows;  // largest first
  Row remainder;          // of which `between` lies between steps
  double between = 0;
};
ProfileTable Tabulate(const std::vector<StepTime>& steps, int64_t tokens);
nlohmann::ordered_json ToJson(const ProfileTable& table, const std::vector<OpTime>& loading);
std::string ToText(const ProfileTable& table, const std::vector<OpTime>& loading);

}  // namespace qserve::bench
