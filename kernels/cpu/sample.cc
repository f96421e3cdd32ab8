// Sampling: what is done to a row of logits and in which order, see kernels/backend.h (SampleArgs).
// Rows are spread over the pool; a row's work touches only its own row, its thread's scratch and
// its own result.
//
// Greedy rows without penalties read the logits once. top_k selects by a shrinking threshold and
// top_p by bins instead of sorting the vocabulary; both end as one cut (value, id), so that the
// draw is the same pass in every case.
#include "kernels/cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cpu/math.h"
#include "kernels/cpu/workspace.h"

namespace qserve::kernels::cpu {
namespace {

struct Candidate {
  float value;
  int32_t id;
};
// Most likely first; ties by lower id.
bool Before(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

// The `count` first candidates of the row in order. Fewer if the row has fewer values above
// -infinity. Expected O(n).
std::vector<Candidate> MostLikely(const float* row, int64_t n, int64_t count) {
  const auto kept = static_cast<ptrdiff_t>(std::min(count, n));
  const auto limit = static_cast<size_t>(std::max<ptrdiff_t>(2 * kept, 1024));
  std::vector<Candidate> best;
  if (kept == 0) return best;
  best.reserve(std::min(limit, static_cast<size_t>(n)));
  float threshold = -INFINITY;
  for (int64_t i = 0; i < n; ++i) {
    if (!(row[i] > threshold)) continue;  // later equals of the last kept one rank after it
    best.push_back({row[i], static_cast<int32_t>(i)});
    if (best.size() < limit) continue;
    std::nth_element(best.begin(), best.begin() + (kept - 1), best.end(), Before);
    best.resize(static_cast<size_t>(kept));
    threshold = best.back().value;
  }
  std::sort(best.begin(), best.end(), Before);
  if (std::ssize(best) > kept) best.resize(static_cast<size_t>(kept));
  return best;
}

bool ChangesLogits(const SampleRow& row) {
  return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
         row.frequency_penalty != 0.0f || !row.bias_ids.empty() || !row.banned_ids.empty();
}

// Penalties, bias, bans on a copy of the logits. `marks` is scratch, one entry per id.
void ChangeLogits(const SampleRow& row, float* logits, uint32_t* marks, int64_t n) {
  if (row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
      row.frequency_penalty != 0.0f) {
    constexpr uint32_t kInPrompt = 0x80000000u;
    std::fill_n(marks, n, 0u);
    for (const int32_t id : row.prompt_ids) marks[id] = kInPrompt;
    for (const int32_t id : row.output_ids) ++marks[id];
    const auto penalize = [&](int32_t id) {
      if (marks[id] == 0) return;
      const uint32_t count = marks[id] & ~kInPrompt;
      marks[id] = 0;  // once per id
      float& x = logits[id];
      x = x > 0.0f ? x / row.repetition_penalty : x * row.repetition_penalty;
      if (count == 0) return;
      x = x - row.presence_penalty;
      x = x - row.frequency_penalty * static_cast<float>(count);
    };
    for (const int32_t id : row.prompt_ids) penalize(id);
    for (const int32_t id : row.output_ids) penalize(id);
  }
  for (size_t i = 0; i < row.bias_ids.size(); ++i) logits[row.bias_ids[i]] += row.bias_values[i];
  for (const int32_t id : row.banned_ids) logits[id] = -INFINITY;
}

struct Cut {
  float value = -INFINITY;
  int32_t id = 0x7fffffff;
};

// Where top_p ends a row without top_k: the masses are summed by value in bins of 1/64, and only
// the bin in which the sum reaches the target is sorted. `weights` are exp(x - max). Sums in
// double, ids in order within a bin, so the cut is the same everywhere.
Cut CutByMass(const float* x, const float* weights, int64_t n, float max, float top_p) {
  constexpr int kBins = 4096;
  constexpr float kBinsPerUnit = 64;
  const auto bin_of = [max](float value) {
    const float distance = (max - value) * kBinsPerUnit;
    return distance < static_cast<float>(kBins - 1) ? static_cast<size_t>(distance)
                                                    : size_t{kBins - 1};
  };
  std::vector<double> masses(kBins);
  for (int64_t i = 0; i < n; ++i) masses[bin_of(x[i])] += static_cast<double>(weights[i]);
  double total = 0;
  for (const double mass : masses) total += mass;
  const double target = total * static_cast<double>(top_p);
  double before = 0;
  size_t bin = 0;
  while (bin + 1 < kBins && before + masses[bin] < target) before += masses[bin++];
  std::vector<Candidate> edge;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] > -INFINITY && bin_of(x[i]) == bin) edge.push_back({x[i], static_cast<int32_t>(i)});
  }
  std::sort(edge.begin(), edge.end(), Before);
  for (const Candidate& c : edge) {
    before += static_cast<double>(weights[c.id]);
    if (before >= target) return {c.value, c.id};
  }
  return {};
}

// Where top_k and top_p end the row. With both, the masses are those of the top_k set, summed in
// its order. `scratch`: n floats.
Cut CutRow(const SamplePasses& passes, const SampleRow& row, const float* x, int64_t n, float max,
           float* scratch) {
  const bool by_count = row.top_k > 0 && row.top_k < n;
  const bool by_mass = row.top_p < 1.0f;
  if (!by_count && !by_mass) return {};
  if (!by_count) {
    passes.exp(x, n, max, scratch);
    return CutByMass(x, scratch, n, max, row.top_p);
  }
  const std::vector<Candidate> best = MostLikely(x, n, row.top_k);
  if (by_mass) {
    double total = 0, mass = 0;
    for (const Candidate& c : best) total += static_cast<double>(Exp(c.value - max));
    const double target = total * static_cast<double>(row.top_p);
    for (const Candidate& c : best) {
      mass += static_cast<double>(Exp(c.value - max));
      if (mass >= target) return {c.value, c.id};
    }
  }
  return {best.back().value, best.back().id};
}

void NoteLogprobs(const SamplePasses& passes, const SampleRow& row, const float* logits, int64_t n,
                  float max, SampledToken* result) {
  const float log_sum = Log(passes.exp_sum(logits, n, max));
  const auto logprob = [&](float x) { return (x - max) - log_sum; };
  result->logprob = logprob(logits[result->id]);
  if (row.logprobs == 0) return;
  for (const Candidate& c : MostLikely(logits, n, row.logprobs)) {
    result->top.push_back({c.id, logprob(c.value)});
  }
}

enum class Outcome : uint8_t { kOk, kNan, kNothingLeft };

Outcome SampleOne(const SamplePasses& passes, const SampleRow& row, const float* logits, int64_t n,
                  Workspace& workspace, int thread, SampledToken* result) {
  RowScan raw = passes.scan(logits, n);
  if (raw.has_nan) return Outcome::kNan;
  raw.max += 0.0f;  // which zero is found first may differ between lanes; -0 becomes 0
  const bool changed = ChangesLogits(row);
  const bool greedy = row.temperature == 0.0f;
  result->slot = row.slot;
  RowScan scan = raw;
  const float* x = logits;
  float* scratch = nullptr;
  if (changed || !greedy) {
    const auto bytes = static_cast<size_t>(n) * sizeof(float);
    auto* copy = static_cast<float*>(workspace.PerThread(thread, 2 * bytes));
    scratch = copy + n;
    if (changed) {
      std::copy_n(logits, n, copy);
      ChangeLogits(row, copy, reinterpret_cast<uint32_t*>(scratch), n);
      x = copy;
    }
    if (!greedy) passes.divide(x, n, row.temperature, copy);
    x = copy;
    scan = passes.scan(x, n);
    if (scan.has_nan) return Outcome::kNan;
    scan.max += 0.0f;
  }
  if (scan.argmax < 0) return Outcome::kNothingLeft;
  result->id = scan.argmax;
  // An infinite logit leaves no distribution to draw from: it wins.
  if (!greedy && scan.max < INFINITY) {
    const Cut cut = CutRow(passes, row, x, n, scan.max, scratch);
    result->id = passes.draw({.row = x,
                              .count = n,
                              .max = scan.max,
                              .min_p = row.min_p,
                              .cut_value = cut.value,
                              .cut_id = cut.id,
                              .seed_low = static_cast<uint32_t>(row.seed),
                              .seed_high = static_cast<uint32_t>(row.seed >> 32),
                              .position = row.position,
                              .candidate = row.candidate});
  }
  if (row.logprobs >= 0) NoteLogprobs(passes, row, logits, n, raw.max, result);
  return Outcome::kOk;
}

}  // namespace

Status SampleWith(const SamplePasses& passes, OpContext& context, const SampleArgs& args) {
  std::vector<SampledToken> tokens(args.rows.size());
  std::vector<Outcome> outcomes(args.rows.size(), Outcome::kOk);
  const auto body = [&](int64_t begin, int64_t end, int thread) {
    for (int64_t r = begin; r < end; ++r) {
      const auto i = static_cast<size_t>(r);
      outcomes[i] = SampleOne(passes, args.rows[i], args.logits.row(r), args.vocab_size,
                              context.workspace, thread, &tokens[i]);
    }
  };
  context.pool.ParallelFor(std::ssize(tokens), 1, body);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (outcomes[i] == Outcome::kOk) continue;
    const char* what = outcomes[i] == Outcome::kNan ? "a logit is NaN" : "every token is banned";
    return {StatusCode::kDevice, "Sample: row " + std::to_string(i) + ": " + what};
  }
  if (args.sampled_ids != nullptr) {
    for (const SampledToken& token : tokens) args.sampled_ids[token.slot] = token.id;
  }
  if (args.results != nullptr) *args.results = std::move(tokens);
  return {};
}

}  // namespace qserve::kernels::cpu
