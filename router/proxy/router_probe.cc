#include "router/proxy/router_probe.h"

namespace qserve::router {

RouterProbe::RouterProbe(Metrics& metrics, const Registry& registry)
    : requests(metrics.AddCounter("qserve_router_requests_total", "Generation calls accepted")),
      retries(metrics.AddCounter("qserve_router_retries_total",
                                 "Calls sent to another replica before anything was forwarded")),
      resumes(metrics.AddCounter("qserve_router_resumes_total",
                                 "Streams continued on another replica")),
      interrupted(metrics.AddCounter("qserve_router_interrupted_total",
                                     "Streams that ended with STREAM_INTERRUPTED")),
      refused(metrics.AddCounter("qserve_router_refused_total",
                                 "Calls refused: no replica, or too many open")),
      open_calls(metrics.AddGauge("qserve_router_open_calls",
                                  "Calls open that are a replica's to answer")),
      first_chunk_seconds(metrics.AddHistogram("qserve_router_first_chunk_seconds",
                                               "From arrival to the first chunk",
                                               LatencyBuckets())) {
  prometheus::Gauge& ready =
      metrics.AddGauge("qserve_router_ready_replicas", "Replicas that take requests");
  prometheus::Gauge& all = metrics.AddGauge("qserve_router_replicas", "Replicas configured");
  metrics.OnCollect([&ready, &all, &registry] {
    ready.Set(static_cast<double>(registry.ready_count()));
    all.Set(static_cast<double>(registry.replicas().size()));
  });
}

}  // namespace qserve::router
