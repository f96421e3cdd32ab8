#include "worker/leader.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "common/log.h"
#include "common/status_macros.h"
#include "worker/engine/engine.h"
#include "worker/serve/served_model.h"
#include "worker/serve/server.h"

namespace qserve::worker {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(20);
// After the group is lost, for what is in flight to fail.
constexpr auto kLossGrace = std::chrono::seconds(1);

std::string KvName(const std::vector<kernels::KvFormat>& formats) {
  const bool mixed =
      std::any_of(formats.begin(), formats.end(),
                  [&formats](kernels::KvFormat format) { return format != formats.front(); });
  if (mixed) return "kv-mixed";
  switch (formats.front()) {
    case kernels::KvFormat::kInt4:
      return "kv4";
    case kernels::KvFormat::kInt8:
      return "kv8";
    case kernels::KvFormat::kF16:
      return "kv16";
    case kernels::KvFormat::kF32:
      return "kv32";
  }
  return "";
}

// For people: how linears and KV cache are stored.
std::string QuantizationName(const Flags& flags, const exec::ModelDescription& description) {
  const std::string kv = KvName(description.kv_formats);
  const checkpoint::Scheme scheme = description.config.scheme;
  if (scheme == checkpoint::Scheme::kQoqGroup128 || flags.formats.quantize == "rtn-g128") {
    return fmt::format("w4a8{}-g128", kv);
  }
  if (scheme == checkpoint::Scheme::kQoqPerChannel || flags.formats.quantize == "rtn-gchn") {
    return fmt::format("w4a8{}-gchn", kv);
  }
  return fmt::format("float-{}", kv);
}

// A directory without a tokenizer is served by token ids; a broken tokenizer is an error.
absl::Status LoadText(const Flags& flags, serve::ServedModel& model) {
  auto tokenizer = text::Tokenizer::Load(flags.model);
  if (absl::IsNotFound(tokenizer.status())) {
    LOG_WARN("{} has no tokenizer: prompts must be token ids, answers have no text", flags.model);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(tokenizer.status());
  model.tokenizer = *std::move(tokenizer);
  auto chat_template = text::ChatTemplate::Load(flags.model);
  if (absl::IsNotFound(chat_template.status())) return absl::OkStatus();
  RETURN_IF_ERROR(chat_template.status());
  model.chat_template = *std::move(chat_template);
  return absl::OkStatus();
}

absl::StatusOr<serve::ServedModel> Describe(const Flags& flags, const exec::Rank& rank) {
  const exec::ModelDescription& description = rank.description();
  serve::ServedModel model;
  model.name = ServedName(flags);
  model.architecture = description.config.architecture;
  model.quantization = QuantizationName(flags, description);
  model.numerics_id = description.numerics_id;
  model.max_model_len = rank.limits().max_model_len;
  model.vocab_size = static_cast<int32_t>(description.config.vocab_size);
  model.tensor_parallel_size = flags.tensor_parallel_size;
  model.eos_token_ids = description.config.eos_token_ids;
  model.defaults = description.defaults;
  model.default_seed = flags.seed;
  RETURN_IF_ERROR(LoadText(flags, model));
  if (model.tokenizer != nullptr) {
    const std::vector<int32_t>& more = model.tokenizer->eos_token_ids();
    model.eos_token_ids.insert(model.eos_token_ids.end(), more.begin(), more.end());
  }
  std::sort(model.eos_token_ids.begin(), model.eos_token_ids.end());
  model.eos_token_ids.erase(std::unique(model.eos_token_ids.begin(), model.eos_token_ids.end()),
                            model.eos_token_ids.end());
  return model;
}

// Users are surprised by defaults they did not set: they are said once.
void LogDefaults(const serve::ServedModel& model) {
  const checkpoint::GenerationDefaults& d = model.defaults;
  LOG_INFO(
      "sampling defaults of the model: temperature {}, top_p {}, top_k {}, min_p {}, "
      "repetition_penalty {}",
      d.temperature.value_or(1), d.top_p.value_or(1), d.top_k.value_or(0), d.min_p.value_or(0),
      d.repetition_penalty.value_or(1));
}

// Waits for the wish to stop, the engine's end or the group's; after the first lets open requests
// finish within the time they have.
absl::Status ServeUntilStopped(const Flags& flags, const Clock& clock, serve::Server& server,
                               const std::atomic<bool>& engine_ended, std::future<void>& stop,
                               const std::function<absl::Status()>& group_status) {
  while (!engine_ended && group_status().ok() &&
         stop.wait_for(kPoll) != std::future_status::ready) {
  }
  if (const absl::Status lost = group_status(); !lost.ok()) {
    // The step in flight fails by itself and takes its requests along; an idle engine notices
    // nothing.
    const TimePoint deadline = clock.Now() + kLossGrace;
    while (!engine_ended && !server.Idle() && clock.Now() < deadline)
      std::this_thread::sleep_for(kPoll);
    return lost;
  }
  if (engine_ended) return absl::OkStatus();
  LOG_INFO("draining");
  server.StartDraining();
  const TimePoint deadline = clock.Now() + DrainTimeout(flags);
  while (!engine_ended && !server.Idle() && clock.Now() < deadline)
    std::this_thread::sleep_for(kPoll);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunLeader(const Flags& flags, const exec::Rank& rank, exec::StepExecutor& executor,
                       comm::HostGroup& group, Metrics& metrics, const Clock& clock,
                       std::future<void> stop, const std::function<absl::Status()>& group_status) {
  ASSIGN_OR_RETURN(const serve::ServedModel model, Describe(flags, rank));
  LogDefaults(model);
  engine::Engine engine(EngineOptionsOf(flags), executor, group, clock);
  absl::Status engine_status;
  std::atomic<bool> engine_ended = false;
  std::thread engine_thread([&] {
    engine_status = engine.Run();
    engine_ended = true;
  });
  absl::Status status;
  auto server = serve::Server::Start(flags.listen, model, engine, clock, metrics);
  if (server.ok()) {
    LOG_INFO("serving '{}' on {} (port {}), numerics {}", model.name, flags.listen,
             (*server)->port(), model.numerics_id);
    status = ServeUntilStopped(flags, clock, **server, engine_ended, stop, group_status);
  } else {
    status = server.status();
  }
  // Before the engine: what is cut short is to go on elsewhere, not to end as cancelled.
  if (server.ok()) (*server)->Shutdown(std::chrono::seconds(1));
  engine.Stop();
  engine_thread.join();
  RETURN_IF_ERROR(status);
  return engine_status;
}

}  // namespace qserve::worker
