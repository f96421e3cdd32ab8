// The operations of CudaBackend: host arrays are staged, then a kernel is launched. Where a step is
// replayed from a recording there is no stream to launch on, and staging is all.
#include <algorithm>
#include <utility>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/float_linear.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/sampling.h"

namespace qserve::kernels::cuda {
namespace {

// Of a step's sampling inputs at once; rows beyond it have launches of their own.
constexpr int64_t kMostSamplingBytes = int64_t{16} << 20;
// Of a row: what memory is seen to beforehand.
constexpr int64_t kUsualBiases = 4096;
constexpr int64_t kUsualTops = 20;
constexpr int64_t kLaunchRounding = 4096;  // results of some launches, each rounded up

// Memory for the inputs of so many rows, as long as their lists may be, but for one row no less.
int64_t SamplingRoom(int64_t rows, int32_t vocab_size) {
  const int64_t lists = SamplingListBytes(vocab_size, kUsualBiases);
  const int64_t all = SamplingInputBytes(rows) + rows * lists;
  return std::max(std::min(all, kMostSamplingBytes), SamplingInputBytes(1) + lists);
}

int64_t SamplingResultRoom(int64_t rows) {
  return rows * static_cast<int64_t>(sizeof(SamplingResult) + kUsualTops * sizeof(SamplingTop));
}

int64_t SamplingInputBound(const SampleRow& row, int32_t vocab_size) {
  const int64_t lists = std::ssize(row.prompt_ids) + std::ssize(row.output_ids) +
                        std::ssize(row.bias_ids) + std::ssize(row.banned_ids);
  const auto edit_bytes = static_cast<int64_t>(sizeof(SamplingEdit));
  return static_cast<int64_t>(sizeof(SamplingRow)) +
         std::min<int64_t>(lists, vocab_size) * edit_bytes + std::ssize(row.bias_values) * 4;
}

int64_t SamplingResultBound(const SampleRow& row) {
  return static_cast<int64_t>(sizeof(SamplingResult)) +
         std::max(row.logprobs, 0) * static_cast<int64_t>(sizeof(SamplingTop));
}

}  // namespace

void CudaBackend::Embed(const EmbedArgs& args) {
  Operation([&] {
    const int32_t* const ids = runner_.Stage<int32_t>(args.token_ids, args.out.rows, 0);
    StreamHandle const to = runner_.Issue();
    if (to == nullptr) return;
    runner_.Check(LaunchEmbed(to, {.table = args.table.data,
                                   .table_type = args.table.type,
                                   .first_id = args.table.first_id,
                                   .table_rows = args.table.rows,
                                   .token_ids = ids,
                                   .sampled_ids = args.sampled_ids,
                                   .out = args.out}),
                  "Embed");
  });
}

void CudaBackend::Norm(const NormArgs& args) {
  Operation([&] {
    const int32_t* rows = nullptr;
    if (!args.rows.empty()) rows = runner_.Stage<int32_t>(args.rows, std::ssize(args.rows), 0);
    StreamHandle const to = runner_.Issue();
    if (to == nullptr) return;
    runner_.Check(LaunchNorm(to, {.residual = args.residual,
                                  .delta = args.delta,
                                  .gain = args.gain,
                                  .epsilon = args.epsilon,
                                  .rows = rows,
                                  .out = args.out}),
                  "Norm");
  });
}

void CudaBackend::Linear(const LinearArgs& args) {
  Operation([&] {
    if (!runner_.Issuing()) return;  // it has no host arrays
    const auto& weight = static_cast<const CudaLinear&>(*args.weight);
    if (weight.format == WeightFormat::kFloat) {
      StreamHandle const to = runner_.Issue();
      if (to == nullptr) return;
      runner_.Check(LaunchFloatLinear(to, {.weight = weight.memory.data(),
                                           .weight_type = weight.float_type,
                                           .bias = weight.bias.as<float>(),
                                           .x = args.x,
                                           .out = args.out}),
                    "Linear");
      return;
    }
    const LinearChoice choice =
        ChooseLinear(linear_machine_, ProblemOf(weight.layout, args.out.rows));
    // Sums as large as any batch will want: small ones are split further than the largest, which
    // runs first. Scratch grows with the rows.
    void* const sums =
        choice.sums_bytes > 0
            ? workspace_.Get("linear sums", std::max(choice.sums_bytes, linear_sums_bytes_))
            : nullptr;
    void* const scratch =
        choice.scratch_bytes > 0 ? workspace_.Get("linear scratch", choice.scratch_bytes) : nullptr;
    StreamHandle const to = runner_.Issue();
    if (to == nullptr) return;
    runner_.Check(LaunchLinear(to, {.layout = weight.layout,
                                    .weight = weight.memory.data(),
                                    .x = args.x,
                                    .out = args.out,
                                    .choice = choice,
                                    .sums = sums,
                                    .scratch = scratch}),
                  "Linear");
  });
}

void CudaBackend::RopeAppend(const RopeAppendArgs& args) {
  Operation([&] {
    const RowPlaces* const places = attention_.Places(args.sequences, args.qkv.rows);
    StreamHandle const to = places != nullptr ? runner_.Issue() : nullptr;
    if (to == nullptr) return;
    runner_.Check(LaunchRopeAppend(to, {.qkv = args.qkv,
                                        .heads = args.heads,
                                        .kv = args.kv,
                                        .cos_sin = args.cos_sin,
                                        .q_gain = args.q_gain,
                                        .k_gain = args.k_gain,
                                        .qk_epsilon = args.qk_epsilon,
                                        .positions = places->positions,
                                        .pages = places->pages,
                                        .layer = args.layer}),
                  "RopeAppend");
  });
}

void CudaBackend::Attention(const AttentionArgs& args) {
  Operation([&] {
    const AttentionModel model = {
        .heads = args.heads, .kv = args.kv, .sliding_window = args.sliding_window};
    const StagedAttention* const plan = attention_.Plan(model, args.sequences, args.q.rows);
    if (plan == nullptr || !runner_.Issuing()) return;
    const AttentionLimits& limits = plan->limits;
    const AttentionParts parts = {
        .out = static_cast<float*>(
            workspace_.Get("attention out", AttentionPartBytes(model, limits.parts))),
        .weights = static_cast<float*>(
            workspace_.Get("attention weights", AttentionWeightBytes(model, limits.parts))),
        .first_parts = plan->first_parts,
        .part_counts = plan->part_counts};
    auto* const arrived = workspace_.Get<int32_t>("attention arrivals", limits.rows);
    StreamHandle const to = runner_.Issue();
    if (to == nullptr) return;
    AttentionLaunch launch = {.q = args.q,
                              .heads = args.heads,
                              .kv = args.kv,
                              .scale = args.scale,
                              .sliding_window = args.sliding_window,
                              .layer = args.layer,
                              .block_tables = plan->block_tables,
                              .parts = parts};
    const auto attend = [&](const AttentionItem* items, const int32_t* count, int tiles) {
      if (items == nullptr) return;
      launch.items = items;
      launch.item_count = count;
      launch.tiles = tiles;
      launch.blocks = AttentionBlocks(model, tiles, attention_.device());
      runner_.Check(LaunchAttention(to, launch), "Attention");
    };
    attend(plan->narrow, plan->counts, plan->tiles.narrow);
    attend(plan->wide, plan->counts + 1, plan->tiles.wide);
    runner_.Check(LaunchAttentionCombine(to, {.parts = parts,
                                              .heads = args.heads,
                                              .head_dim = args.kv.head_dim,
                                              .out = args.out,
                                              .arrived = arrived}),
                  "Attention");
  });
}

void CudaBackend::SiluMul(const SiluMulArgs& args) {
  Operation([&] {
    StreamHandle const to = runner_.Issue();
    if (to == nullptr) return;
    runner_.Check(LaunchSiluMul(to, {.gate_up = args.gate_up, .out = args.out}), "SiluMul");
  });
}

// Never part of a recording: what is drawn how differs from step to step.
void CudaBackend::Sample(const SampleArgs& args) {
  EndRecorded();
  Operation([&] {
    if (args.results != nullptr) args.results->clear();
    // The largest steps come first, at start-up: later ones find the memory.
    runner_.ReserveLate(SamplingRoom(std::ssize(args.rows), args.vocab_size),
                        SamplingResultRoom(std::ssize(args.rows)) + kLaunchRounding);
    for (int64_t row = 0; row < std::ssize(args.rows) && runner_.Wanted();) {
      row += SampleSome(args, row);
    }
  });
}

int64_t CudaBackend::SampleSome(const SampleArgs& args, int64_t first_row) {
  const std::span<const SampleRow> rest = args.rows.subspan(static_cast<size_t>(first_row));
  int64_t input_bytes = SamplingInputBytes(0), result_bytes = 0, count = 0;
  for (const SampleRow& row : rest) {
    const int64_t more = SamplingInputBound(row, args.vocab_size);
    if (count > 0 && input_bytes + more > runner_.late_room()) break;
    input_bytes += more;
    result_bytes += SamplingResultBound(row);
    ++count;
  }
  auto* const results = workspace_.Get<uint8_t>(
      "sampling results", std::max(result_bytes, SamplingResultRoom(std::ssize(args.rows))));
  const StagedBytes inputs = runner_.PlaceLate(input_bytes);
  if (results == nullptr || inputs.host == nullptr) return count;
  const StatusOr<SamplingPlan> plan = PlanSampling(
      rest.first(static_cast<size_t>(count)), {}, args.vocab_size,
      std::span(inputs.host, static_cast<size_t>(input_bytes)), result_bytes, sampling_scratch_);
  if (!plan.ok()) {
    Fail(plan.status());
    return count;
  }
  runner_.TrimLate(inputs, plan->input_bytes);
  StreamHandle const to = runner_.Issue();
  if (to == nullptr) return count;
  const int64_t stride = args.logits.stride;
  // The kernel edits logits in place and puts them back.
  float* const logits = const_cast<float*>(args.logits.data) + first_row * stride;
  if (!runner_.Check(LaunchSampling(to, {.logits = logits,
                                         .stride = stride,
                                         .vocab_size = args.vocab_size,
                                         .rows = plan->rows,
                                         .inputs = reinterpret_cast<uint8_t*>(inputs.device),
                                         .results = results,
                                         .sampled_ids = args.sampled_ids}),
                     "Sample")) {
    return count;
  }
  // What is needed of the rows when the results have come: the lists are the caller's.
  std::vector<SampleRow> kept(rest.begin(), rest.begin() + plan->rows);
  for (SampleRow& row : kept) {
    row.prompt_ids = row.output_ids = row.bias_ids = row.banned_ids = {};
    row.bias_values = {};
  }
  const auto read = [this, kept = std::move(kept), first_row,
                     to_results = args.results](std::span<const std::byte> block) {
    std::vector<SampledToken> unwanted;
    Status status =
        ReadSamplingResults(kept, first_row, block, to_results != nullptr ? to_results : &unwanted);
    if (!status.ok()) Fail(std::move(status));
  };
  runner_.ReadBack(results, plan->result_bytes, read);
  return plan->rows;
}

}  // namespace qserve::kernels::cuda
