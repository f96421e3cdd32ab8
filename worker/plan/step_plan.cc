// The bytes of a StepPlan. Little-endian, no padding, every list behind a 32-bit count. What
// arrives may be anything: a count is compared with the bytes that are left before memory is taken
// for it, and ids and positions are checked for sign.
#include "worker/plan/step_plan.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "absl/status/status.h"
#include "common/hashing.h"
#include "common/status_macros.h"

namespace qserve::worker::plan {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the wire format is the memory format of every supported host");

constexpr uint32_t kMagic = 0x50535351;  // "QSSP"
constexpr uint32_t kVersion = 1;

class Writer {
 public:
  explicit Writer(size_t size_hint) { bytes_.reserve(size_hint); }

  template <class T>
    requires std::is_arithmetic_v<T>
  void Put(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    bytes_.append(raw, sizeof(T));
  }
  void PutBool(bool value) { Put<uint8_t>(value ? 1 : 0); }
  void PutCount(size_t count) { Put(static_cast<uint32_t>(count)); }
  void PutIds(const std::vector<int32_t>& ids) {
    PutCount(ids.size());
    bytes_.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
  }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Reads front to back. The first thing wrong is kept; what is read after it is zero.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}

  template <class T>
    requires std::is_arithmetic_v<T>
  T Get() {
    T value{};
    if (rest_.size() < sizeof(T)) {
      Refuse("truncated");
      return value;
    }
    std::memcpy(&value, rest_.data(), sizeof(T));
    rest_.remove_prefix(sizeof(T));
    return value;
  }
  bool GetBool() {
    const auto value = Get<uint8_t>();
    if (value > 1) Refuse("a flag is neither 0 nor 1");
    return value == 1;
  }
  float GetFloat() {
    const auto value = Get<float>();
    if (std::isnan(value)) Refuse("a number is NaN");
    return value;
  }
  int32_t GetNotNegative(const char* what) {
    const auto value = Get<int32_t>();
    if (value < 0) Refuse(what);
    return value < 0 ? 0 : value;
  }
  // The length of a list whose entries take at least `entry_bytes` each.
  size_t GetCount(size_t entry_bytes) {
    const auto count = Get<uint32_t>();
    if (count > rest_.size() / entry_bytes) {
      Refuse("a list is longer than the message");
      return 0;
    }
    return count;
  }
  void GetIds(std::vector<int32_t>& ids, int32_t least, const char* what) {
    ids.resize(GetCount(sizeof(int32_t)));
    const size_t size = ids.size() * sizeof(int32_t);
    if (size > 0) std::memcpy(ids.data(), rest_.data(), size);
    rest_.remove_prefix(size);
    for (const int32_t id : ids) {
      if (id < least) Refuse(what);
    }
  }

  void Refuse(const char* why) {
    if (why_ == nullptr) why_ = why;
    rest_ = {};
  }
  bool ok() const { return why_ == nullptr; }
  bool at_end() const { return rest_.empty(); }
  const char* why() const { return why_; }

 private:
  std::string_view rest_;
  const char* why_ = nullptr;
};

// The least bytes an entry of each list takes.
constexpr size_t kMinStartBytes = 4 * 4 + 4 * 6 + 4 + 8 + 4 * 2 + 4 * 3;
constexpr size_t kMinDeltaBytes = 4 + 4 + 4;
constexpr size_t kMinRowsBytes = 4 + 4 + 1 + 4;

void PutSampling(const Sampling& sampling, Writer& out) {
  out.Put(sampling.temperature);
  out.Put(sampling.top_k);
  out.Put(sampling.top_p);
  out.Put(sampling.min_p);
  out.Put(sampling.repetition_penalty);
  out.Put(sampling.presence_penalty);
  out.Put(sampling.frequency_penalty);
  out.Put(sampling.seed);
  out.Put(sampling.logprobs);
  out.Put(sampling.min_tokens);
  out.PutIds(sampling.banned_ids);
  out.PutCount(sampling.logit_bias.size());
  for (const auto& [id, bias] : sampling.logit_bias) {
    out.Put(id);
    out.Put(bias);
  }
}

void GetSampling(Reader& in, Sampling& sampling) {
  sampling.temperature = in.GetFloat();
  sampling.top_k = in.Get<int32_t>();
  sampling.top_p = in.GetFloat();
  sampling.min_p = in.GetFloat();
  sampling.repetition_penalty = in.GetFloat();
  sampling.presence_penalty = in.GetFloat();
  sampling.frequency_penalty = in.GetFloat();
  sampling.seed = in.Get<uint64_t>();
  sampling.logprobs = in.Get<int32_t>();
  if (sampling.logprobs < -1) in.Refuse("logprobs below -1");
  sampling.min_tokens = in.GetNotNegative("min_tokens is negative");
  in.GetIds(sampling.banned_ids, 0, "a banned id is negative");
  sampling.logit_bias.resize(in.GetCount(sizeof(int32_t) + sizeof(float)));
  for (auto& [id, bias] : sampling.logit_bias) {
    id = in.GetNotNegative("a biased id is negative");
    bias = in.GetFloat();
  }
}

void PutStart(const SlotStart& start, Writer& out) {
  out.Put(start.slot.value());
  out.Put(start.candidate);
  out.Put(start.prompt_tokens);
  out.Put(start.tokens);
  PutSampling(start.sampling, out);
  out.PutIds(start.history);
}

void GetStart(Reader& in, SlotStart& start) {
  start.slot = SlotId(in.GetNotNegative("a slot is negative"));
  start.candidate = in.Get<uint32_t>();
  start.prompt_tokens = in.GetNotNegative("prompt_tokens is negative");
  start.tokens = in.GetNotNegative("tokens is negative");
  if (start.tokens < start.prompt_tokens) in.Refuse("fewer tokens than prompt tokens");
  GetSampling(in, start.sampling);
  in.GetIds(start.history, 0, "an id of the history is negative");
}

void GetDelta(Reader& in, BlockDelta& delta) {
  delta.slot = SlotId(in.GetNotNegative("a slot is negative"));
  delta.first_index = in.GetNotNegative("first_index is negative");
  delta.blocks.resize(in.GetCount(sizeof(int32_t)));
  for (BlockId& block : delta.blocks) block = BlockId(in.GetNotNegative("a block is negative"));
}

void GetRows(Reader& in, SequenceRows& rows) {
  rows.slot = SlotId(in.GetNotNegative("a slot is negative"));
  rows.first_position = in.GetNotNegative("first_position is negative");
  rows.sample = in.GetBool();
  in.GetIds(rows.tokens, kTokenFromLastStep, "a token is negative");
  if (rows.tokens.empty()) return in.Refuse("an entry without rows");
  const size_t room =
      static_cast<size_t>(std::numeric_limits<int32_t>::max() - rows.first_position);
  if (rows.tokens.size() > room) return in.Refuse("positions overflow");
  if (rows.tokens.size() == 1) return;  // only a decode may take the last step's token
  for (const int32_t token : rows.tokens) {
    if (token == kTokenFromLastStep) return in.Refuse("the last step's token within a chunk");
  }
}

// A little more than Encode writes for everything but samplings and histories.
size_t SizeHint(const StepPlan& plan) {
  size_t size = 64 + plan.ends.size() * sizeof(int32_t) + plan.starts.size() * (2 * kMinStartBytes);
  for (const BlockDelta& delta : plan.block_deltas) {
    size += kMinDeltaBytes + delta.blocks.size() * sizeof(int32_t);
  }
  for (const SequenceRows& rows : plan.rows) {
    size += kMinRowsBytes + rows.tokens.size() * sizeof(int32_t);
  }
  return size;
}

void GetLists(Reader& in, StepPlan& plan) {
  plan.ends.resize(in.GetCount(sizeof(int32_t)));
  for (SlotId& slot : plan.ends) slot = SlotId(in.GetNotNegative("a slot is negative"));
  plan.starts.resize(in.GetCount(kMinStartBytes));
  for (SlotStart& start : plan.starts) GetStart(in, start);
  plan.block_deltas.resize(in.GetCount(kMinDeltaBytes));
  for (BlockDelta& delta : plan.block_deltas) GetDelta(in, delta);
  plan.rows.resize(in.GetCount(kMinRowsBytes));
  for (SequenceRows& rows : plan.rows) GetRows(in, rows);
}

}  // namespace

int64_t StepPlan::token_count() const {
  int64_t count = 0;
  for (const SequenceRows& sequence : rows) count += static_cast<int64_t>(sequence.tokens.size());
  return count;
}

std::string Encode(const StepPlan& plan) {
  Writer out(SizeHint(plan));
  out.Put(kMagic);
  out.Put(kVersion);
  out.Put(plan.step.value());
  out.Put(plan.committed_step.value());
  out.Put(plan.committed_digest);
  out.PutBool(plan.shutdown);
  out.PutCount(plan.ends.size());
  for (const SlotId slot : plan.ends) out.Put(slot.value());
  out.PutCount(plan.starts.size());
  for (const SlotStart& start : plan.starts) PutStart(start, out);
  out.PutCount(plan.block_deltas.size());
  for (const BlockDelta& delta : plan.block_deltas) {
    out.Put(delta.slot.value());
    out.Put(delta.first_index);
    out.PutCount(delta.blocks.size());
    for (const BlockId block : delta.blocks) out.Put(block.value());
  }
  out.PutCount(plan.rows.size());
  for (const SequenceRows& rows : plan.rows) {
    out.Put(rows.slot.value());
    out.Put(rows.first_position);
    out.PutBool(rows.sample);
    out.PutIds(rows.tokens);
  }
  return out.Take();
}

absl::StatusOr<StepPlan> Decode(std::string_view bytes) {
  Reader in(bytes);
  if (in.Get<uint32_t>() != kMagic) return absl::InvalidArgumentError("step plan: not a step plan");
  if (const auto version = in.Get<uint32_t>(); version != kVersion) {
    return absl::InvalidArgumentError(
        fmt::format("step plan: version {}, this process speaks {}", version, kVersion));
  }
  StepPlan plan;
  plan.step = StepId(in.Get<int64_t>());
  plan.committed_step = StepId(in.Get<int64_t>());
  if (plan.step.value() < 0 || plan.committed_step.value() < 0) in.Refuse("a step is negative");
  plan.committed_digest = in.Get<uint64_t>();
  plan.shutdown = in.GetBool();
  GetLists(in, plan);
  if (in.ok() && !in.at_end()) in.Refuse("bytes after the end");
  if (!in.ok()) return absl::InvalidArgumentError(fmt::format("step plan: {}", in.why()));
  return plan;
}

uint64_t DigestTokens(const StepResult& result) {
  uint64_t digest = 0;
  for (const SampledToken& token : result.tokens) {
    const int32_t pair[] = {token.slot.value(), token.id};
    digest = HashSpan(std::span<const int32_t>(pair), digest);
  }
  return digest;
}

}  // namespace qserve::worker::plan
