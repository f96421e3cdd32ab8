// Prometheus metrics of one process: a registry and the HTTP endpoint that shows it. Components
// register their metrics once, at construction, and keep references; there are no global metrics.
// Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "absl/status/statusor.h"

namespace qserve {

class Metrics {
 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // A metric without labels, registered for this object's life.
  prometheus::Counter& AddCounter(const std::string& name, const std::string& help);
  prometheus::Gauge& AddGauge(const std::string& name, const std::string& help);
  prometheus::Histogram& AddHistogram(const std::string& name, const std::string& help,
                                      std::vector<double> buckets);

  // For metrics with labels.
  prometheus::Registry& registry() { return *registry_; }

  // Called before each scrape, to set gauges from a snapshot.
  void OnCollect(std::function<void()> update);
  // Drops every update: called before what they refer to goes away. Waits for a scrape under way.
  void ClearUpdates();

  // Serves http://`address`/metrics; an error if it cannot listen there.
  absl::Status Serve(const std::string& address);

  // The text a scrape would get, for tests and for servers that answer themselves.
  std::string Text();

 private:
  class Collector;
  struct Endpoint;
  std::shared_ptr<prometheus::Registry> registry_;
  std::shared_ptr<Collector> collector_;
  std::unique_ptr<Endpoint> endpoint_;
};

// Upper bounds for latencies, 1 ms to about 40 minutes, each double the last.
std::vector<double> LatencyBuckets();

}  // namespace qserve
