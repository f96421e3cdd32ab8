// The router's own metrics, registered once.
#pragma once

#include "common/metrics/metrics.h"
#include "router/registry/registry.h"

namespace qserve::router {

struct RouterProbe {
  RouterProbe(Metrics& metrics, const Registry& registry);
  prometheus::Counter& requests;
  prometheus::Counter& retries;      // sent to another replica before anything was forwarded
  prometheus::Counter& resumes;      // continued on another replica
  prometheus::Counter& interrupted;  // ended with STREAM_INTERRUPTED
  prometheus::Counter& refused;      // no replica, or too many open calls
  prometheus::Gauge& open_calls;
  prometheus::Histogram& first_chunk_seconds;
};

}  // namespace qserve::router
