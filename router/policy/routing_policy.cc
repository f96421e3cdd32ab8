#include "router/policy/routing_policy.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <random>
#include <tuple>

#include <fmt/format.h>

namespace qserve::router {
namespace {

class LeastLoaded final : public RoutingPolicy {
 public:
  size_t Pick(const RoutingRequest&, std::span<const ReplicaLoad> replicas) override {
    // A report is up to 50 ms old and does not know the calls just sent; ours do not know other
    // routers'. The larger is nearer the truth.
    const auto cost = [](const ReplicaLoad& replica) {
      return std::tuple(std::max(replica.in_flight, replica.running + replica.waiting),
                        replica.picked, replica.index);
    };
    const auto best = std::min_element(
        replicas.begin(), replicas.end(),
        [&cost](const ReplicaLoad& a, const ReplicaLoad& b) { return cost(a) < cost(b); });
    return static_cast<size_t>(best - replicas.begin());
  }
};

class RoundRobin final : public RoutingPolicy {
 public:
  size_t Pick(const RoutingRequest&, std::span<const ReplicaLoad> replicas) override {
    return static_cast<size_t>(next_.fetch_add(1)) % replicas.size();
  }

 private:
  std::atomic<uint64_t> next_{0};
};

class Random final : public RoutingPolicy {
 public:
  size_t Pick(const RoutingRequest&, std::span<const ReplicaLoad> replicas) override {
    const std::lock_guard lock(mutex_);
    return std::uniform_int_distribution<size_t>(0, replicas.size() - 1)(generator_);
  }

 private:
  std::mutex mutex_;
  std::mt19937_64 generator_{std::random_device()()};  // guarded by mutex_
};

}  // namespace

absl::StatusOr<std::unique_ptr<RoutingPolicy>> MakeRoutingPolicy(const std::string& name) {
  if (name == "least-loaded") return std::make_unique<LeastLoaded>();
  if (name == "round-robin") return std::make_unique<RoundRobin>();
  if (name == "random") return std::make_unique<Random>();
  return absl::InvalidArgumentError(
      fmt::format("policy must be least-loaded, round-robin or random, not '{}'", name));
}

}  // namespace qserve::router
