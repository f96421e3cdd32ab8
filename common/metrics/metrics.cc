#include "common/metrics/metrics.h"

#include <exception>
#include <mutex>

#include <fmt/format.h>
#include <prometheus/exposer.h>
#include <prometheus/text_serializer.h>

#include "common/log.h"

namespace qserve {

// Runs the updates before it hands out the registry's families.
class Metrics::Collector final : public prometheus::Collectable {
 public:
  explicit Collector(std::shared_ptr<prometheus::Registry> registry)
      : registry_(std::move(registry)) {}

  void Add(std::function<void()> update) {
    const std::lock_guard lock(mutex_);
    updates_.push_back(std::move(update));
  }

  void Clear() {
    const std::lock_guard lock(mutex_);
    updates_.clear();
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    const std::lock_guard lock(mutex_);
    for (const auto& update : updates_) update();
    return registry_->Collect();
  }

 private:
  std::shared_ptr<prometheus::Registry> registry_;
  mutable std::mutex mutex_;
  std::vector<std::function<void()>> updates_;
};

struct Metrics::Endpoint {
  explicit Endpoint(const std::string& address) : exposer(address, 1) {}
  prometheus::Exposer exposer;
};

Metrics::Metrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      collector_(std::make_shared<Collector>(registry_)) {}
Metrics::~Metrics() = default;

prometheus::Counter& Metrics::AddCounter(const std::string& name, const std::string& help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(*registry_).Add({});
}

prometheus::Gauge& Metrics::AddGauge(const std::string& name, const std::string& help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry_).Add({});
}

prometheus::Histogram& Metrics::AddHistogram(const std::string& name, const std::string& help,
                                             std::vector<double> buckets) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Register(*registry_)
      .Add({}, std::move(buckets));
}

void Metrics::OnCollect(std::function<void()> update) { collector_->Add(std::move(update)); }

void Metrics::ClearUpdates() { collector_->Clear(); }

absl::Status Metrics::Serve(const std::string& address) {
  // The HTTP server reports a port in use by exception; it ends here.
  try {
    endpoint_ = std::make_unique<Endpoint>(address);
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        fmt::format("cannot serve metrics on {}: {}", address, error.what()));
  }
  endpoint_->exposer.RegisterCollectable(collector_);
  const std::vector<int> ports = endpoint_->exposer.GetListeningPorts();
  if (!ports.empty()) LOG_INFO("serving metrics on {}, port {}", address, ports.front());
  return absl::OkStatus();
}

std::string Metrics::Text() {
  return prometheus::TextSerializer().Serialize(collector_->Collect());
}

std::vector<double> LatencyBuckets() {
  std::vector<double> bounds;
  for (double bound = 0.001; bound < 2600; bound *= 2) bounds.push_back(bound);
  return bounds;
}

}  // namespace qserve
