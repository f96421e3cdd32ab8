// Cases of the floating-point operations, see float_cases.h.
#include "tests/ops/float_cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ranges>

#include "common/philox.h"
#include "kernels/cpu/float_ops.h"
#include "kernels/quant/rope_table.h"

namespace qserve::kernels::testing {
namespace {

constexpr int kWorldSequences = 6;

}  // namespace

FloatOps ReferenceOps() {
  namespace isa = cpu::reference;
  return {"reference",     true,           isa::Embed,   isa::Norm,
          isa::RopeAppend, isa::Attention, isa::SiluMul, isa::Sample};
}

std::vector<FloatOps> FastOps() {
  std::vector<FloatOps> all;
  {
    namespace isa = cpu::emulated;
    all.push_back({"emulated", true, isa::Embed, isa::Norm, isa::RopeAppend, isa::Attention,
                   isa::SiluMul, isa::Sample});
  }
  // Tables that differ in their linears only share these operations (AVX-VNNI and AVX2): they run
  // once, under the name of the one that needs less of the machine. From the last table to the
  // best.
  for (const cpu::OpTable* table : std::views::reverse(cpu::AllOpTables())) {
    const bool known = table->attention == cpu::reference::Attention ||
                       std::any_of(all.begin(), all.end(), [table](const FloatOps& ops) {
                         return ops.attention == table->attention;
                       });
    if (known) continue;
    all.push_back({table->isa, table->supported(), table->embed, table->norm, table->rope_append,
                   table->attention, table->silu_mul, table->sample});
  }
  return all;
}

std::vector<float> RandomFloats(int64_t count, uint64_t seed, float deviation) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    const PhiloxBlock block =
        Philox4x32({static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), 17, 0},
                   {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
    float sum = -2;
    for (const uint32_t bits : block) sum += UniformOpen(bits);
    values[i] = sum * 1.7320508f * deviation;  // four uniforms have variance 1/3
  }
  return values;
}

Output::Output(int64_t rows, int64_t cols, bool floats, bool codes, int64_t lead) {
  view.rows = rows;
  view.cols = cols;
  if (floats) {
    view.f32_stride = cols + 3;
    f32.assign(static_cast<size_t>(rows * view.f32_stride), -77.0f);
    view.f32 = f32.data();
  }
  if (!codes) return;
  view.lead = lead;
  view.q_stride = PaddedColumns(lead, cols);
  memory.assign(static_cast<size_t>(rows * view.q_stride + 64), 0);
  view.q = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  scale.assign(static_cast<size_t>(rows), -77.0f);
  row_sum.assign(static_cast<size_t>(rows), -77);
  view.scale = scale.data();
  view.row_sum = row_sum.data();
}

bool Output::operator==(const Output& other) const {
  const auto same = [](const void* a, const void* b, size_t bytes) {
    return bytes == 0 || std::memcmp(a, b, bytes) == 0;
  };
  return view.rows == other.view.rows && view.cols == other.view.cols && row_sum == other.row_sum &&
         same(f32.data(), other.f32.data(), f32.size() * sizeof(float)) &&
         same(scale.data(), other.scale.data(), scale.size() * sizeof(float)) &&
         same(view.q, other.view.q, static_cast<size_t>(view.rows * view.q_stride));
}

const char* FormatName(KvFormat format) {
  switch (format) {
    case KvFormat::kInt4:
      return "int4";
    case KvFormat::kInt8:
      return "int8";
    case KvFormat::kF16:
      return "fp16";
    case KvFormat::kF32:
      return "fp32";
  }
  return "?";
}

std::string AttentionCase::Name() const {
  std::string name = std::string(FormatName(format)) + "_q" + std::to_string(heads) + "_kv" +
                     std::to_string(kv_heads) + "_d" + std::to_string(head_dim);
  if (window > 0) name.append("_window").append(std::to_string(window));
  if (qk_norm) name += "_norm";
  for (const SequenceShape& s : sequences) {
    name.append("_").append(std::to_string(s.first_position));
    name.append("+").append(std::to_string(s.row_count));
  }
  return name;
}

const std::vector<AttentionCase>& AttentionCases() {
  constexpr auto k4 = KvFormat::kInt4;
  constexpr auto k8 = KvFormat::kInt8;
  constexpr auto k16 = KvFormat::kF16;
  constexpr auto k32 = KvFormat::kF32;
  static const std::vector<AttentionCase> cases = {
      {4, 1, 128, k4, 0, false, {{0, 1}, {5, 3}, {63, 2}, {300, 1}}},
      {4, 2, 64, k4, 0, true, {{255, 1}, {256, 1}, {511, 2}, {0, 70}}},
      {3, 3, 96, k4, 0, false, {{260, 37}, {0, 1}}},
      {7, 1, 128, k4, 0, false, {{700, 1}, {127, 5}}},
      {12, 1, 64, k4, 0, false, {{520, 3}}},
      {2, 1, 256, k4, 0, true, {{250, 9}, {64, 1}}},
      {2, 2, 32, k4, 0, false, {{15, 18}, {1000, 1}}},
      {4, 2, 128, k4, 17, false, {{0, 40}, {300, 20}, {515, 1}}},
      {2, 1, 64, k4, 1, false, {{0, 3}, {257, 2}}},
      {4, 4, 64, k4, 300, false, {{600, 33}, {290, 1}}},
      {6, 2, 96, k8, 0, true, {{70, 65}, {511, 1}}},
      {4, 1, 64, k8, 64, false, {{320, 10}, {60, 9}}},
      {2, 1, 256, k8, 0, false, {{300, 2}}},
      {4, 2, 128, k16, 0, false, {{0, 20}, {258, 4}}},
      {3, 1, 96, k16, 100, true, {{400, 12}, {7, 1}}},
      {4, 2, 64, k32, 0, false, {{0, 66}, {511, 3}, {33, 1}}},
      {5, 1, 128, k32, 200, false, {{450, 8}}},
      {40, 1, 32, k4, 0, false, {{77, 2}}},
  };
  return cases;
}

KvWorld::KvWorld(const AttentionCase& shape, int64_t positions, uint64_t page_seed)
    : shape_(shape) {
  const KvShape kv{shape.format, shape.kv_heads, shape.head_dim};
  page_bytes_ = KvPageBytes(kv) + 64 * static_cast<int64_t>(page_seed % 2);
  const int64_t blocks = (positions + kKvPageTokens - 1) / kKvPageTokens;
  std::vector<int32_t> order(static_cast<size_t>(blocks * kWorldSequences));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  for (size_t i = order.size(); i > 1; --i) {
    const PhiloxBlock block =
        Philox4x32({static_cast<uint32_t>(i), 0, 0, 0}, {static_cast<uint32_t>(page_seed), 3});
    std::swap(order[i - 1], order[block[0] % i]);
  }
  for (int s = 0; s < kWorldSequences; ++s) {
    tables_.emplace_back(order.begin() + s * blocks, order.begin() + (s + 1) * blocks);
  }
  pages_.assign(static_cast<size_t>(page_bytes_) * order.size(), 0xff);
  const RopeSpec spec{.head_dim = shape.head_dim};
  cos_sin_ = *BuildRopeTable(spec, positions);
  if (shape.qk_norm) {
    q_gain_ = RandomFloats(shape.head_dim, 21);
    k_gain_ = RandomFloats(shape.head_dim, 22);
  }
}

KvLayer KvWorld::layer() const { return {const_cast<uint8_t*>(pages_.data()), page_bytes_}; }

float KvWorld::scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }

KvWorld::Step KvWorld::MakeStep(const std::vector<SequenceShape>& sequences,
                                const std::vector<int>& ids) const {
  Step step;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const int id = ids.empty() ? static_cast<int>(i) : ids[i];
    const SequenceShape& s = sequences[i];
    step.spans.push_back(
        {step.rows, s.row_count, s.first_position, tables_[static_cast<size_t>(id)]});
    for (int64_t r = 0; r < s.row_count; ++r) {
      const auto token = static_cast<uint64_t>(s.first_position + r);
      const std::vector<float> row =
          RandomFloats(row_width(), static_cast<uint64_t>(id) * 1000003 + token);
      step.qkv.insert(step.qkv.end(), row.begin(), row.end());
    }
    step.rows += s.row_count;
  }
  return step;
}

Status KvWorld::Append(const FloatOps& ops, Rig& rig, Step& step) {
  return ops.rope_append(rig.context,
                         {.qkv = {step.qkv.data(), step.rows, row_width(), row_width()},
                          .heads = shape_.heads,
                          .kv = kv(),
                          .cos_sin = cos_sin_.data(),
                          .q_gain = q_gain_.empty() ? nullptr : q_gain_.data(),
                          .k_gain = k_gain_.empty() ? nullptr : k_gain_.data(),
                          .qk_epsilon = 1e-6f,
                          .sequences = step.spans,
                          .layer = layer()});
}

Status KvWorld::Attend(const FloatOps& ops, Rig& rig, const Step& step,
                       const Activation& out) const {
  return ops.attention(rig.context, {.q = {step.qkv.data(), step.rows, out_width(), row_width()},
                                     .heads = shape_.heads,
                                     .kv = kv(),
                                     .scale = scale(),
                                     .sliding_window = shape_.window,
                                     .sequences = step.spans,
                                     .layer = layer(),
                                     .out = out});
}

void KvWorld::StoreHistory(const std::vector<SequenceShape>& sequences,
                           const std::vector<int>& ids) {
  Rig rig(1);
  std::vector<SequenceShape> history;
  for (const SequenceShape& s : sequences) history.push_back({0, s.first_position});
  Step step = MakeStep(history, ids);
  (void)Append(ReferenceOps(), rig, step);
}

}  // namespace qserve::kernels::testing
