// `qserve status`: whether a router or replica takes requests, and for which models. Exit code 0
// means ready, so that scripts can wait by it.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <thread>

#include "client/commands.h"
#include "client/connection.h"
#include "client/terminal_text.h"
#include "common/cli/options.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace qserve::client {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::chrono::milliseconds kCallTimeout{5000};
constexpr std::chrono::milliseconds kPause{200};

struct Flags {
  std::string address = "127.0.0.1:50050";
  double wait = 0;
  bool json = false;
};

// What one look at a server found.
struct Look {
  absl::Status ready;  // OK, or why it takes no requests
  std::vector<v1::Model> models;
  std::optional<v1::WatchStatusResponse> replica;  // none for a router
};

absl::Status Readiness(const Look& look, Health health) {
  if (look.replica && look.replica->draining())
    return absl::UnavailableError("draining: takes no new requests");
  if (look.replica && !look.replica->making_progress())
    return absl::UnavailableError("not ready: its steps do not finish");
  if (health == Health::kNotServing)
    return absl::UnavailableError(look.replica ? "not ready" : "not ready: no usable replica");
  if (look.models.empty()) return absl::UnavailableError("not ready: no model is served");
  return absl::OkStatus();
}

Look LookAt(Connection& connection) {
  Look look;
  v1::ListModelsResponse models;
  Health health = Health::kNotServing;
  v1::WatchStatusResponse replica;
  grpc::Status status = connection.ListModels(kCallTimeout, models);
  if (status.ok()) status = connection.CheckHealth(kCallTimeout, health);
  if (status.ok()) {
    look.models.assign(models.models().begin(), models.models().end());
    status = connection.WorkerStatus(kCallTimeout, replica);
    if (status.ok()) look.replica = replica;
    if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) status = grpc::Status::OK;
  }
  look.ready =
      status.ok() ? Readiness(look, health) : absl::UnavailableError(connection.Explain(status));
  return look;
}

std::string Joined(const v1::Model& model) {
  std::string ids;
  for (const std::string& id : model.numerics_ids()) ids += (ids.empty() ? "" : ", ") + id;
  return ids;
}

double Uptime(const v1::WatchStatusResponse& replica) {
  return static_cast<double>(replica.uptime().seconds()) + replica.uptime().nanos() * 1e-9;
}

std::string AsText(const std::string& address, const Look& look) {
  std::string text = fmt::format("{}: ready ({})\n", address, look.replica ? "replica" : "router");
  for (const v1::Model& model : look.models) {
    text += fmt::format("  model {}: {}, {}, context {}, vocabulary {}, chat {}, numerics {}\n",
                        OneLine(model.name()), OneLine(model.architecture()),
                        OneLine(model.quantization()), model.max_model_len(), model.vocab_size(),
                        model.supports_chat() ? "yes" : "no", OneLine(Joined(model)));
  }
  if (look.replica) {
    const v1::WatchStatusResponse& r = *look.replica;
    text += fmt::format(
        "  replica {}: tensor parallel {}, running {}, waiting {}, queued tokens {}, KV blocks {} "
        "of {}, steps {}, generated tokens {}, up {:.0f} s\n",
        OneLine(r.epoch()), r.tensor_parallel_size(), r.running(), r.waiting(), r.queued_tokens(),
        r.kv_blocks_used(), r.kv_blocks_total(), r.steps(), r.generated_tokens(), Uptime(r));
  }
  return text;
}

Json AsJson(const std::string& address, const Look& look) {
  Json json = {{"address", address}, {"ready", look.ready.ok()}};
  if (!look.ready.ok()) json["reason"] = OneLine(std::string(look.ready.message()));
  json["models"] = Json::array();
  for (const v1::Model& model : look.models) {
    json["models"].push_back(
        {{"name", model.name()},
         {"architecture", model.architecture()},
         {"quantization", model.quantization()},
         {"max_model_len", model.max_model_len()},
         {"vocab_size", model.vocab_size()},
         {"supports_chat", model.supports_chat()},
         {"numerics_ids",
          std::vector<std::string>(model.numerics_ids().begin(), model.numerics_ids().end())}});
  }
  if (!look.replica) return json;
  const v1::WatchStatusResponse& r = *look.replica;
  json["replica"] = {{"epoch", r.epoch()},
                     {"numerics_id", r.numerics_id()},
                     {"tensor_parallel_size", r.tensor_parallel_size()},
                     {"running", r.running()},
                     {"waiting", r.waiting()},
                     {"queued_tokens", r.queued_tokens()},
                     {"kv_blocks_total", r.kv_blocks_total()},
                     {"kv_blocks_used", r.kv_blocks_used()},
                     {"draining", r.draining()},
                     {"making_progress", r.making_progress()},
                     {"steps", r.steps()},
                     {"generated_tokens", r.generated_tokens()},
                     {"uptime_seconds", Uptime(r)}};
  return json;
}

absl::Status Run(const Flags& flags, const Console& console, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const auto connection, Connection::Create(flags.address, interrupt));
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(flags.wait);
  Look look = LookAt(*connection);
  while (!look.ready.ok() && !interrupt.tripped() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(kPause);
    look = LookAt(*connection);
  }
  if (interrupt.tripped()) return absl::CancelledError("interrupted");
  if (flags.json) {
    constexpr auto kReplace = nlohmann::json::error_handler_t::replace;
    RETURN_IF_ERROR(
        Print(console, AsJson(flags.address, look).dump(-1, ' ', false, kReplace) + "\n"));
  } else if (look.ready.ok()) {
    RETURN_IF_ERROR(Print(console, AsText(flags.address, look)));
  }
  return look.ready;
}

}  // namespace

int Status(int argc, const char* const* argv, const Console& console, Interrupt& interrupt) {
  Flags flags;
  cli::Options options("qserve status",
                       "Says whether a router or replica takes requests; exit code 0: it does");
  options.Add("address", flags.address, "Router or replica, HOST:PORT");
  options.Add("wait", flags.wait, "Seconds to wait until it is ready")->check(CLI::Range(0.0, 1e6));
  options.AddFlag("json", flags.json, "One JSON object on standard output");
  if (const auto code = options.Parse(argc, argv)) return *code;
  return Report(console, Run(flags, console, interrupt));
}

}  // namespace qserve::client
