#include "router/registry/registry.h"

#include <algorithm>
#include <map>

namespace qserve::router {

Registry::Registry(const std::vector<std::string>& addresses, RoutingPolicy& policy)
    : policy_(policy) {
  for (const std::string& address : addresses) {
    replicas_.push_back(std::make_unique<Replica>(static_cast<int64_t>(replicas_.size()), address));
  }
}

Replica* Registry::Pick(const std::string& model, const RoutingRequest& request,
                        std::span<Replica* const> excluded, const std::string& numerics_id) {
  std::vector<ReplicaLoad> loads;
  for (const auto& replica : replicas_) {
    if (std::find(excluded.begin(), excluded.end(), replica.get()) != excluded.end()) continue;
    const Replica::View view = replica->Look();
    if (!view.ready || !replica->Serves(model)) continue;
    if (!numerics_id.empty() && view.report.numerics_id() != numerics_id) continue;
    loads.push_back({.index = replica->index(),
                     .running = view.report.running(),
                     .waiting = view.report.waiting(),
                     .queued_tokens = view.report.queued_tokens(),
                     .in_flight = view.in_flight,
                     .picked = view.picked});
  }
  if (loads.empty()) return nullptr;
  return replicas_[static_cast<size_t>(loads[policy_.Pick(request, loads)].index)].get();
}

bool Registry::Knows(const std::string& model) const {
  return std::any_of(replicas_.begin(), replicas_.end(),
                     [&model](const auto& replica) { return replica->Serves(model); });
}

bool Registry::Incomplete() const {
  return std::any_of(replicas_.begin(), replicas_.end(),
                     [](const auto& replica) { return !replica->Look().known; });
}

std::vector<v1::Model> Registry::Models() const {
  std::map<std::string, v1::Model> by_name;
  for (const auto& replica : replicas_) {
    for (const v1::Model& model : replica->Models()) {
      const auto [entry, inserted] = by_name.emplace(model.name(), model);
      if (inserted) continue;
      auto& ids = *entry->second.mutable_numerics_ids();
      for (const std::string& id : model.numerics_ids()) {
        if (std::find(ids.begin(), ids.end(), id) == ids.end()) *ids.Add() = id;
      }
    }
  }
  std::vector<v1::Model> models;
  for (auto& [name, model] : by_name) models.push_back(std::move(model));
  return models;
}

int64_t Registry::ready_count() const {
  return std::count_if(replicas_.begin(), replicas_.end(),
                       [](const auto& replica) { return replica->Look().ready; });
}

}  // namespace qserve::router
