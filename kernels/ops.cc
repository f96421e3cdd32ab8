// Checks of every operation's arguments, once for all backends: shapes, formats, pointers, spans
// and what may not overlap. Called by worker/model on the executor's thread. A violation is latched
// in the backend and the operation does not run.
#include "kernels/ops.h"

#include <cmath>
#include <string>

namespace qserve::kernels::ops {
namespace {

// The first violation of one call, prefixed by the operation's name.
class Checker {
 public:
  Checker(Backend& backend, const char* op) : backend_(backend), op_(op) {}
  // Notes `what` if the condition does not hold; returns whether all is well so far.
  bool Require(bool holds, const char* what, StatusCode code = StatusCode::kInvalidArgument) {
    if (!failed_ && !holds) {
      failed_ = true;
      backend_.Fail(Status(code, std::string(op_) + ": " + what));
    }
    return !failed_;
  }
  bool ok() const { return !failed_; }

 private:
  Backend& backend_;
  const char* op_;
  bool failed_ = false;
};

template <class M>
bool WellFormed(const M& m) {
  return m.rows >= 0 && m.cols > 0 && m.stride >= m.cols && (m.data != nullptr || m.rows == 0);
}

// The bytes that a matrix or buffer spans; empty ones touch nothing.
struct Extent {
  uintptr_t begin = 0;
  uintptr_t end = 0;
};
Extent ExtentOf(const void* data, int64_t rows, int64_t cols, int64_t stride, int64_t element) {
  if (data == nullptr || rows <= 0) return {};
  const auto begin = reinterpret_cast<uintptr_t>(data);
  return {begin, begin + static_cast<uintptr_t>(((rows - 1) * stride + cols) * element)};
}
Extent ExtentOf(const ConstFloatMatrix& m) {
  return ExtentOf(m.data, m.rows, m.cols, m.stride, BytesOf(m.type));
}
bool Overlap(Extent a, Extent b) { return a.begin < b.end && b.begin < a.end; }
bool Overlaps(const Activation& out, Extent input) {
  return Overlap(ExtentOf(out.f32, out.rows, out.cols, out.f32_stride, int64_t{sizeof(float)}),
                 input) ||
         Overlap(ExtentOf(out.q, out.rows, out.q_stride, out.q_stride, 1), input);
}

// What passes between operations is of the backend's activation type.
bool CheckType(Checker& check, const Backend& backend, const ConstFloatMatrix& m) {
  return check.Require(m.type == backend.info().activation_type,
                       "values are not of the backend's activation type");
}
// Where fp32 is possible too: partial sums that other ranks' are added to, logits.
bool CheckTypeOrF32(Checker& check, const Backend& backend, const ConstFloatMatrix& m) {
  return m.type == FloatType::kF32 || CheckType(check, backend, m);
}

bool CheckActivation(Checker& check, const Activation& a) {
  if (!check.Require(a.rows >= 0 && a.cols > 0, "activation without columns")) return false;
  if (a.rows == 0) return true;
  check.Require(a.f32 != nullptr || a.q != nullptr, "activation has neither floats nor codes");
  if (a.f32 != nullptr)
    check.Require(a.f32_stride >= a.cols, "activation stride below its columns");
  if (a.q == nullptr) return check.ok();
  check.Require(a.scale != nullptr && a.row_sum != nullptr, "int8 rows without scale or row sum");
  check.Require(a.lead >= 0 && a.lead < kWeightGroup, "activation lead outside 0..127");
  check.Require(a.q_stride % kWeightGroup == 0 && a.q_stride >= PaddedColumns(a.lead, a.cols),
                "int8 row stride is not a multiple of 128 that holds lead and columns");
  return check.Require(reinterpret_cast<uintptr_t>(a.q) % 64 == 0,
                       "int8 rows not aligned to 64 bytes");
}

bool CheckKv(Checker& check, const KvShape& kv, int heads, const KvLayer& layer) {
  check.Require(kv.kv_heads > 0 && heads > 0 && heads % kv.kv_heads == 0,
                "query heads are not a multiple of kv heads");
  check.Require(kv.head_dim > 0 && kv.head_dim <= 256 && kv.head_dim % 32 == 0,
                "head_dim is not a multiple of 32 up to 256", StatusCode::kUnsupported);
  if (!check.ok()) return false;
  check.Require(layer.pages != nullptr, "no KV pages");
  return check.Require(layer.page_bytes >= KvPageBytes(kv),
                       "KV pages smaller than their format needs");
}

// Spans are ascending, cover exactly `rows` rows, and their tables name a page for every position
// from `window` back on.
bool CheckSequences(Checker& check, std::span<const SequenceSpan> sequences, int64_t rows,
                    int64_t window) {
  int64_t next = 0;
  for (const SequenceSpan& s : sequences) {
    if (!check.Require(s.first_row == next && s.row_count >= 0,
                       "sequences do not cover the rows in order") ||
        !check.Require(s.first_position >= 0, "negative position")) {
      return false;
    }
    next += s.row_count;
    if (s.row_count == 0) continue;
    const int64_t last = (s.first_position + s.row_count - 1) / kKvPageTokens;
    if (!check.Require(std::ssize(s.block_table) > last,
                       "block table does not reach the last position")) {
      return false;
    }
    const int64_t oldest = window < s.first_position ? s.first_position - window : 0;
    for (int64_t i = oldest / kKvPageTokens; i <= last; ++i) {
      if (!check.Require(s.block_table[static_cast<size_t>(i)] >= 0,
                         "negative page in a block table")) {
        return false;
      }
    }
  }
  return check.Require(next == rows, "sequences do not cover the rows");
}

bool AllWithin(std::span<const int32_t> ids, int64_t limit) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= limit) return false;
  }
  return true;
}

bool CheckSampleRow(Checker& check, const SampleRow& row, int32_t vocab_size) {
  check.Require(row.slot >= 0, "negative slot");
  check.Require(row.temperature >= 0 && std::isfinite(row.temperature),
                "temperature is negative or not finite");
  check.Require(row.top_k >= 0, "top_k is negative");
  check.Require(row.top_p > 0 && row.top_p <= 1, "top_p outside (0, 1]");
  check.Require(row.min_p >= 0 && row.min_p <= 1, "min_p outside [0, 1]");
  check.Require(row.repetition_penalty > 0 && std::isfinite(row.repetition_penalty),
                "repetition penalty is not positive");
  check.Require(std::isfinite(row.presence_penalty) && std::isfinite(row.frequency_penalty),
                "penalty is not finite");
  check.Require(row.bias_ids.size() == row.bias_values.size(), "logit biases without values");
  for (const float value : row.bias_values) check.Require(!std::isnan(value), "logit bias is NaN");
  check.Require(row.logprobs >= -1 && row.logprobs <= vocab_size,
                "more log-probabilities than tokens");
  return check.Require(
      AllWithin(row.prompt_ids, vocab_size) && AllWithin(row.output_ids, vocab_size) &&
          AllWithin(row.bias_ids, vocab_size) && AllWithin(row.banned_ids, vocab_size),
      "token id outside the vocabulary");
}

}  // namespace

void Embed(Backend& backend, const EmbedArgs& args) {
  Checker check(backend, "Embed");
  check.Require(WellFormed(args.out), "malformed output");
  CheckTypeOrF32(check, backend, args.out);
  check.Require(
      args.table.cols == args.out.cols && args.table.rows >= 0 && args.table.first_id >= 0,
      "table and output differ in columns");
  check.Require(args.table.data != nullptr || args.table.rows == 0, "no table");
  check.Require(std::ssize(args.token_ids) == args.out.rows, "one token id per row");
  if (args.sampled_ids == nullptr) {
    for (const int32_t id : args.token_ids)
      check.Require(id >= 0, "a slot is named but no sampled ids are given");
  }
  if (check.ok() && args.out.rows > 0) backend.Embed(args);
}

void Norm(Backend& backend, const NormArgs& args) {
  Checker check(backend, "Norm");
  check.Require(WellFormed(args.residual), "malformed residual");
  CheckType(check, backend, args.residual);
  if (args.delta.data != nullptr) {
    check.Require(WellFormed(args.delta) && args.delta.rows == args.residual.rows &&
                      args.delta.cols == args.residual.cols,
                  "delta differs from the residual in shape");
    CheckType(check, backend, args.delta);
  }
  check.Require(args.gain != nullptr, "no gain");
  check.Require(args.epsilon >= 0 && std::isfinite(args.epsilon),
                "epsilon is negative or not finite");
  check.Require(AllWithin(args.rows, args.residual.rows), "row outside the residual");
  const int64_t rows = args.rows.empty() ? args.residual.rows : std::ssize(args.rows);
  check.Require(args.out.rows == rows && args.out.cols == args.residual.cols,
                "output differs in shape");
  CheckActivation(check, args.out);
  check.Require(
      !Overlaps(args.out, ExtentOf(args.residual)) && !Overlaps(args.out, ExtentOf(args.delta)),
      "output overlaps an input");
  if (check.ok() && args.residual.rows > 0) backend.Norm(args);
}

void Linear(Backend& backend, const LinearArgs& args) {
  Checker check(backend, "Linear");
  if (!check.Require(args.weight != nullptr, "no weight")) return;
  const PackedLinear& weight = *args.weight;
  check.Require(WellFormed(args.out) && args.out.cols == weight.n,
                "output columns differ from the weight's rows");
  CheckTypeOrF32(check, backend, args.out);
  check.Require(args.x.rows == args.out.rows && args.x.cols == weight.k,
                "input differs from weight or output in shape");
  CheckActivation(check, args.x);
  if (TakesInt8(weight.format)) {
    check.Require(args.x.q != nullptr || args.x.rows == 0, "this weight multiplies int8 rows");
    check.Require(args.x.lead == weight.lead, "input and weight differ in lead");
  } else {
    check.Require(args.x.f32 != nullptr || args.x.rows == 0, "this weight multiplies floats");
  }
  check.Require(!Overlaps(args.x, ExtentOf(args.out)), "output overlaps the input");
  if (check.ok() && args.out.rows > 0) backend.Linear(args);
}

void RopeAppend(Backend& backend, const RopeAppendArgs& args) {
  Checker check(backend, "RopeAppend");
  if (!CheckKv(check, args.kv, args.heads, args.layer)) return;
  const int64_t cols = (int64_t{args.heads} + 2 * int64_t{args.kv.kv_heads}) * args.kv.head_dim;
  check.Require(WellFormed(args.qkv) && args.qkv.cols == cols,
                "qkv columns differ from heads times head_dim");
  CheckType(check, backend, args.qkv);
  check.Require(args.cos_sin != nullptr, "no rotation table");
  check.Require(args.qk_epsilon >= 0 && std::isfinite(args.qk_epsilon),
                "epsilon is negative or not finite");
  CheckSequences(check, args.sequences, args.qkv.rows, 0);
  if (check.ok() && args.qkv.rows > 0) backend.RopeAppend(args);
}

void Attention(Backend& backend, const AttentionArgs& args) {
  Checker check(backend, "Attention");
  if (!CheckKv(check, args.kv, args.heads, args.layer)) return;
  check.Require(WellFormed(args.q) && args.q.cols == int64_t{args.heads} * args.kv.head_dim,
                "q columns differ from heads times head_dim");
  CheckType(check, backend, args.q);
  check.Require(std::isfinite(args.scale), "scale is not finite");
  check.Require(args.sliding_window >= 0, "sliding window is negative");
  check.Require(args.out.rows == args.q.rows && args.out.cols == args.q.cols,
                "output differs in shape");
  CheckActivation(check, args.out);
  check.Require(!Overlaps(args.out, ExtentOf(args.q)), "output overlaps q");
  const int64_t window = args.sliding_window > 0 ? args.sliding_window - 1 : INT64_MAX;
  CheckSequences(check, args.sequences, args.q.rows, window);
  if (check.ok() && args.q.rows > 0) backend.Attention(args);
}

void SiluMul(Backend& backend, const SiluMulArgs& args) {
  Checker check(backend, "SiluMul");
  check.Require(WellFormed(args.gate_up) && args.gate_up.cols == 2 * args.out.cols &&
                    args.gate_up.rows == args.out.rows,
                "gate_up is not twice the output");
  CheckType(check, backend, args.gate_up);
  CheckActivation(check, args.out);
  check.Require(!Overlaps(args.out, ExtentOf(args.gate_up)), "output overlaps the input");
  if (check.ok() && args.out.rows > 0) backend.SiluMul(args);
}

void Sample(Backend& backend, const SampleArgs& args) {
  Checker check(backend, "Sample");
  check.Require(WellFormed(args.logits), "malformed logits");
  check.Require(args.vocab_size > 0 && args.vocab_size <= args.logits.cols,
                "vocabulary larger than the logits");
  check.Require(std::ssize(args.rows) == args.logits.rows, "one sampling row per row of logits");
  check.Require(args.sampled_ids != nullptr || args.results != nullptr,
                "nowhere to put the tokens");
  if (!check.ok()) return;
  for (const SampleRow& row : args.rows) {
    if (!CheckSampleRow(check, row, args.vocab_size)) return;
  }
  if (args.rows.empty()) {
    if (args.results != nullptr) args.results->clear();
    return;
  }
  backend.Sample(args);
}

}  // namespace qserve::kernels::ops
