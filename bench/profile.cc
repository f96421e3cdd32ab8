#include "bench/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "bench/statistics.h"
#include "common/clock.h"
#include "kernels/forwarding_backend.h"

namespace qserve::bench {
namespace {

using kernels::Status;
using kernels::StatusOr;
using Json = nlohmann::ordered_json;

class Profiled final : public kernels::ForwardingBackend {
 public:
  Profiled(Profile& profile, std::unique_ptr<kernels::Backend> inner)
      : ForwardingBackend(*inner),
        profile_(profile),
        owned_(std::move(inner)),
        last_end_(clock_.Now()) {}

  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    Time("copy", [&] { ForwardingBackend::CopyToDevice(device, host, bytes); });
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    Time("copy", [&] { ForwardingBackend::CopyToHost(host, device, bytes); });
  }

  StatusOr<std::unique_ptr<kernels::PackedLinear>> Pack(
      const kernels::LinearWeight& weight) override {
    const TimePoint begin = clock_.Now();
    auto packed = ForwardingBackend::Pack(weight);
    profile_.AddLoading("pack", ToSeconds(clock_.Now() - begin));
    return packed;
  }
  StatusOr<std::unique_ptr<kernels::PackedLinear>> PackPieces(
      int64_t rows, const kernels::RowReader& read) override {
    const TimePoint begin = clock_.Now();
    auto packed = ForwardingBackend::PackPieces(rows, read);
    profile_.AddLoading("pack in pieces, reading included", ToSeconds(clock_.Now() - begin));
    return packed;
  }

  void Embed(const kernels::EmbedArgs& args) override {
    step_.tokens += std::ssize(args.token_ids);
    Time("embed", [&] { ForwardingBackend::Embed(args); });
  }
  void Norm(const kernels::NormArgs& args) override {
    Time("norm", [&] { ForwardingBackend::Norm(args); });
  }
  void Linear(const kernels::LinearArgs& args) override {
    const std::string name = fmt::format("linear {} x {}", args.weight->n, args.weight->k);
    Time(name, [&] { ForwardingBackend::Linear(args); });
  }
  void RopeAppend(const kernels::RopeAppendArgs& args) override {
    Time("rope, append", [&] { ForwardingBackend::RopeAppend(args); });
  }
  void Attention(const kernels::AttentionArgs& args) override {
    step_.decodes = std::ssize(args.sequences) == step_.tokens;
    Time("attention", [&] { ForwardingBackend::Attention(args); });
  }
  void SiluMul(const kernels::SiluMulArgs& args) override {
    Time("silu, mul", [&] { ForwardingBackend::SiluMul(args); });
  }
  void Sample(const kernels::SampleArgs& args) override {
    Time("sample", [&] { ForwardingBackend::Sample(args); });
  }

  Status Run(uint64_t key, const std::function<void()>& step) override {
    return Step([&] { return ForwardingBackend::Run(key, step); });
  }
  Status Begin(uint64_t key, const std::function<void()>& step) override {
    return Step([&] { return ForwardingBackend::Begin(key, step); });
  }
  void ReadAtFinish(void* host, const void* device, int64_t bytes) override {
    Time("copy", [&] { ForwardingBackend::ReadAtFinish(host, device, bytes); });
  }

 private:
  template <class Call>
  void Time(const std::string& name, const Call& call) {
    const TimePoint begin = clock_.Now();
    call();
    AddCall(name, ToSeconds(clock_.Now() - begin), step_.ops);
  }
  template <class Call>
  Status Step(const Call& call) {
    step_ = {};
    const TimePoint begin = clock_.Now();
    Status status = call();
    const TimePoint end = clock_.Now();
    step_.inside = ToSeconds(end - begin);
    step_.seconds = ToSeconds(end - std::exchange(last_end_, end));
    profile_.Add(std::exchange(step_, {}));
    return status;
  }

  const SteadyClock clock_;
  Profile& profile_;
  const std::unique_ptr<kernels::Backend> owned_;
  // Of the thread that runs steps.
  TimePoint last_end_;
  StepTime step_;
};

std::string RowText(const ProfileTable::Row& row) {
  return fmt::format("  {:26} {:7.1f} {:9.3f} {:6.1f} %\n", row.name, row.calls, row.seconds * 1e3,
                     row.share * 100);
}

Json RowJson(const ProfileTable::Row& row) {
  return {{"name", row.name}, {"calls", row.calls}, {"seconds", row.seconds}, {"share", row.share}};
}

}  // namespace

void AddCall(const std::string& name, double seconds, std::vector<OpTime>& ops) {
  const auto same =
      std::find_if(ops.begin(), ops.end(), [&name](const OpTime& op) { return op.name == name; });
  OpTime& op = same != ops.end() ? *same : ops.emplace_back(OpTime{.name = name});
  ++op.calls;
  op.seconds += seconds;
}

void Profile::Add(StepTime step) {
  const std::lock_guard lock(mutex_);
  steps_.push_back(std::move(step));
}

std::vector<StepTime> Profile::Take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(steps_, {});
}

void Profile::AddLoading(const std::string& name, double seconds) {
  const std::lock_guard lock(mutex_);
  AddCall(name, seconds, loading_);
}

std::vector<OpTime> Profile::loading() const {
  const std::lock_guard lock(mutex_);
  return loading_;
}

worker::exec::BackendFactory ProfiledBackend(Profile& profile, worker::exec::BackendFactory inner) {
  return [&profile, inner = std::move(inner)](
             const kernels::DeviceOptions& options) -> StatusOr<std::unique_ptr<kernels::Backend>> {
    auto backend = inner(options);
    if (!backend.ok()) return backend.status();
    if ((*backend)->info().asynchronous) {
      return kernels::Unsupported("--profile times calls: it is for devices that compute in them");
    }
    return std::unique_ptr<kernels::Backend>(
        std::make_unique<Profiled>(profile, *std::move(backend)));
  };
}

ProfileTable Tabulate(const std::vector<StepTime>& steps, int64_t tokens) {
  struct Samples {
    double calls = 0;
    std::vector<double> seconds;
  };
  std::vector<std::pair<std::string, Samples>> kinds;
  std::vector<double> whole, remainder, between;
  for (const StepTime& step : steps) {
    if (!step.decodes || step.tokens != tokens) continue;
    double in_ops = 0;
    for (const OpTime& op : step.ops) {
      auto kind = std::find_if(kinds.begin(), kinds.end(),
                               [&op](const auto& entry) { return entry.first == op.name; });
      if (kind == kinds.end()) kind = kinds.insert(kinds.end(), {op.name, {}});
      kind->second.calls += static_cast<double>(op.calls);
      kind->second.seconds.push_back(op.seconds);
      in_ops += op.seconds;
    }
    whole.push_back(step.seconds);
    remainder.push_back(step.seconds - in_ops);
    between.push_back(step.seconds - step.inside);
  }
  ProfileTable table = {.steps = std::ssize(whole), .step_seconds = Median(whole)};
  const auto row = [&table](std::string name, double calls, const std::vector<double>& seconds) {
    const double median = Median(seconds);
    return ProfileTable::Row{
        .name = std::move(name),
        .calls = calls / static_cast<double>(std::max<int64_t>(table.steps, 1)),
        .seconds = median,
        .share = table.step_seconds > 0 ? median / table.step_seconds : 0};
  };
  for (const auto& [name, samples] : kinds)
    table.rows.push_back(row(name, samples.calls, samples.seconds));
  std::stable_sort(table.rows.begin(), table.rows.end(),
                   [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  table.remainder = row("remainder", 0, remainder);
  table.between = Median(between);
  return table;
}

Json ToJson(const ProfileTable& table, const std::vector<OpTime>& loading) {
  Json json = {{"decode_steps", table.steps}, {"step_seconds", table.step_seconds}};
  for (const ProfileTable::Row& row : table.rows) json["operations"].push_back(RowJson(row));
  json["remainder"] = {{"seconds", table.remainder.seconds},
                       {"share", table.remainder.share},
                       {"between_steps_seconds", table.between}};
  for (const OpTime& op : loading)
    json["loading"].push_back({{"name", op.name}, {"calls", op.calls}, {"seconds", op.seconds}});
  return json;
}

std::string ToText(const ProfileTable& table, const std::vector<OpTime>& loading) {
  std::string text =
      fmt::format("\ndecode step, median of {}: {:.3f} ms\n  {:26} {:>7} {:>9} {:>8}\n",
                  table.steps, table.step_seconds * 1e3, "operation", "calls", "ms", "of step");
  for (const ProfileTable::Row& row : table.rows) text += RowText(row);
  text += RowText(table.remainder);
  text += fmt::format("  (of the remainder, {:.3f} ms between steps)\n", table.between * 1e3);
  for (const OpTime& op : loading)
    text += fmt::format("loading: {}, {} calls, {:.2f} s\n", op.name, op.calls, op.seconds);
  return text;
}

}  // namespace qserve::bench
