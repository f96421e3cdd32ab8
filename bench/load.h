// Streams against a router or replica, many at a time, and when what of them arrived. The calling
// thread starts them; gRPC's threads note what comes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/connection.h"

namespace qserve::bench {

struct LoadOptions {
  std::string model;
  int64_t vocabulary = 0;
  int32_t requests = 100;
  int32_t concurrency = 8;  // closed loop: that many at a time; open loop: at most that many
  double rate = 0;          // open loop: arrivals a second, Poisson; 0: closed loop
  int32_t prompt_length = 128;
  int32_t output_length = 64;
  double timeout_seconds = 300;  // of each request
  uint64_t seed = 1;
};

// Seconds since the start of the load. A request is due when a client would have sent it: in the
// open loop at its arrival, even if it was held back, so that a slow server cannot hide its queue.
struct RequestRecord {
  double due = 0;
  double first_token = 0;
  double end = 0;
  int64_t tokens = 0;
  std::string error;  // its reason; empty: the answer is complete
};

// Returns when every request has ended. After an interrupt no more are started and those under way
// are cancelled.
std::vector<RequestRecord> RunLoad(client::Connection& connection, const LoadOptions& options);

}  // namespace qserve::bench
