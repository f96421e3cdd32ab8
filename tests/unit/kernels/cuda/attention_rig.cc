// The GPU's KV cache and whole steps of attention in the emulator, see attention_rig.h.
#include "tests/unit/kernels/cuda/attention_rig.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cpu/kv_reference.h"
#include "kernels/cuda/device/kv_page_address.h"
#include "kernels/quant/half.h"
#include "kernels/quant/rope_table.h"

namespace qserve::kernels::cuda::testing {
namespace {

constexpr int64_t kPositions = 1100;                // of the rotation table
constexpr Vec16 kUnwritten = {~0u, ~0u, ~0u, ~0u};  // NaN as fp32 and fp16

// Calls `use` with the page type of the shape.
template <class Use>
void WithPage(const AttentionCase& shape, Use use) {
  const auto heads = [&]<KvFormat kFormat>() {
    if (shape.head_dim == 64) return use(KvPage<kFormat, 64>());
    if (shape.head_dim == 96) return use(KvPage<kFormat, 96>());
    if (shape.head_dim == 128) return use(KvPage<kFormat, 128>());
    if (shape.head_dim == 256) return use(KvPage<kFormat, 256>());
    FAIL() << "no such head_dim";
  };
  if (shape.format == KvFormat::kInt4) return heads.template operator()<KvFormat::kInt4>();
  if (shape.format == KvFormat::kInt8) return heads.template operator()<KvFormat::kInt8>();
  return heads.template operator()<KvFormat::kF16>();
}

// Where element `channel` of a vector is: a byte, and the bit of it (which may go around the end of
// a word's four bytes).
struct Place {
  int byte = 0;
  int shift = 0;
};
template <class Page>
Place PlaceOf(int slot, int channel, bool is_value) {
  if (is_value) {
    const int byte = ValueByte<Page>(slot, channel / 2), odd = channel % 2;
    return {byte + (Page::kBits == 16  ? 4
                    : Page::kBits == 8 ? 1
                                       : 0) *
                       odd,
            Page::kBits == 4 ? 4 * odd : 0};
  }
  constexpr int kShare = Page::kLaneKeyBytes * 8 / Page::kBits;  // channels of a lane
  constexpr int kInWord = 32 / Page::kBits;
  const int within = channel % kShare;
  const int word = KeyByte<Page>(slot, channel / kShare, within / kInWord * 4);
  const int i = within % kInWord;
  if (Page::kBits == 4) return {word, KeyNibbleShift(i)};
  return {word + i * Page::kBits / 8, 0};
}

template <class Page>
uint32_t LoadBits(const uint8_t* head, Place place, bool is_value) {
  if (Page::kBits == 4 && !is_value) {
    uint32_t word = 0;
    std::memcpy(&word, head + place.byte, 4);
    return std::rotr(word, place.shift) & 15u;
  }
  if (Page::kBits == 4) return static_cast<uint32_t>(head[place.byte] >> place.shift & 15);
  if (Page::kBits == 8) return head[place.byte];
  uint16_t half = 0;
  std::memcpy(&half, head + place.byte, 2);
  return half;
}

template <class Page>
void StoreBits(uint8_t* head, Place place, bool is_value, uint32_t bits) {
  if (Page::kBits == 4) {
    uint32_t word = 0;
    const size_t bytes = is_value ? 1 : 4;
    std::memcpy(&word, head + place.byte, bytes);
    word &= ~std::rotl(uint32_t{15}, place.shift);
    word |= std::rotl(bits, place.shift);
    std::memcpy(head + place.byte, &word, bytes);
  } else {
    std::memcpy(head + place.byte, &bits, Page::kBits / 8);
  }
}

}  // namespace

StoredVector ReadCpu(const KvWorld& world, int32_t page, int kv_head, int slot, bool is_value) {
  const AttentionCase& shape = world.shape();
  const cpu::KvPageLayout layout(shape.format, shape.head_dim);
  const uint8_t* head = cpu::KvHead(world.layer(), layout, page, kv_head);
  StoredVector vector;
  for (int c = 0; c < shape.head_dim; ++c) {
    vector.codes.push_back(is_value
                               ? cpu::reference::LoadCode(
                                     shape.format, head + layout.ValueRow(slot), shape.head_dim, c)
                               : cpu::reference::LoadCode(shape.format, head + layout.KeyRow(c),
                                                          static_cast<int>(kKvPageTokens), slot));
  }
  if (!cpu::KvQuantized(shape.format)) return vector;
  vector.scale = cpu::reference::LoadParameter(head, layout, is_value ? 2 : 0, slot);
  vector.minimum = cpu::reference::LoadParameter(head, layout, is_value ? 3 : 1, slot);
  return vector;
}

HalfRows::HalfRows(const std::vector<float>& values, int64_t row_count, FloatType element)
    : memory(values.size() / 8 + 1),
      rows(row_count),
      cols(row_count == 0 ? 8 : std::ssize(values) / row_count),
      type(element) {
  auto* bits = reinterpret_cast<uint16_t*>(memory.data());
  for (const float value : values) {
    *bits++ = type == FloatType::kF16 ? FloatToHalf(value) : FloatToBf16(value);
  }
}

std::vector<float> HalfRows::Floats() const {
  std::vector<float> values(static_cast<size_t>(rows * cols));
  WidenFloats(type, memory.data(), rows * cols, values.data());
  return values;
}

FloatMatrix HalfRows::Matrix() const {
  return {const_cast<Vec16*>(memory.data()), type, rows, cols, cols};
}

void RoundRows(FloatType type, KvWorld::Step* step) {
  for (float& x : step->qkv) {
    x = type == FloatType::kF16 ? RoundToHalf(x) : Bf16ToFloat(FloatToBf16(x));
  }
}

GpuWorld::GpuWorld(const KvWorld& world)
    : world_(world), shape_(world.shape()), page_bytes_(KvPageBytes(world.kv())) {
  const int64_t count = std::ssize(world.pages()) / world.layer().page_bytes;
  pages_.assign(static_cast<size_t>(count * page_bytes_ / 16), kUnwritten);
  cos_sin_ = *BuildRopeTable({.head_dim = shape_.head_dim}, kPositions);
  if (!shape_.qk_norm) return;
  q_gain_ = qserve::kernels::testing::RandomFloats(shape_.head_dim, 21);  // KvWorld's
  k_gain_ = qserve::kernels::testing::RandomFloats(shape_.head_dim, 22);
}

AttentionModel GpuWorld::model() const {
  return {.heads = shape_.heads, .kv = world_.kv(), .sliding_window = shape_.window};
}
KvLayer GpuWorld::layer() const { return {const_cast<Vec16*>(pages_.data()), page_bytes_}; }
uint8_t* GpuWorld::Head(int32_t page, int kv_head) const {
  return static_cast<uint8_t*>(layer().pages) + page * page_bytes_ +
         kv_head * (page_bytes_ / shape_.kv_heads);
}

void GpuWorld::CopyPages() {
  const auto count = static_cast<int32_t>(std::ssize(pages_) * 16 / page_bytes_);
  WithPage(shape_, [&]<class Page>(Page) {
    ASSERT_EQ(int64_t{Page::kHeadBytes} * shape_.kv_heads, page_bytes_);
    for (int32_t page = 0; page < count; ++page) {
      for (int i = 0; i < shape_.kv_heads * kKvPageTokens * 2; ++i) {
        const int kv_head = i / (2 * kKvPageTokens), slot = i / 2 % kKvPageTokens;
        const bool is_value = i % 2 != 0;
        const StoredVector from = ReadCpu(world_, page, kv_head, slot, is_value);
        uint8_t* head = Head(page, kv_head);
        for (int c = 0; c < shape_.head_dim; ++c) {
          const float x = from.codes[static_cast<size_t>(c)];
          StoreBits<Page>(head, PlaceOf<Page>(slot, c, is_value), is_value,
                          Page::kQuantized ? static_cast<uint32_t>(x) : FloatToHalf(x));
        }
        const uint32_t parameters = FloatToHalf(from.scale) | FloatToHalf(from.minimum) << 16u;
        if (Page::kQuantized) {
          std::memcpy(head + ParameterByte<Page>(slot, is_value), &parameters, 4);
        }
      }
    }
  });
}

StoredVector GpuWorld::Read(int32_t page, int kv_head, int slot, bool is_value) const {
  StoredVector vector;
  WithPage(shape_, [&]<class Page>(Page) {
    const uint8_t* head = Head(page, kv_head);
    for (int c = 0; c < shape_.head_dim; ++c) {
      const uint32_t bits = LoadBits<Page>(head, PlaceOf<Page>(slot, c, is_value), is_value);
      vector.codes.push_back(Page::kQuantized ? static_cast<float>(bits)
                                              : HalfToFloat(static_cast<uint16_t>(bits)));
    }
    if (!Page::kQuantized) return;
    uint16_t parameters[2];
    std::memcpy(parameters, head + ParameterByte<Page>(slot, is_value), 4);
    vector.scale = HalfToFloat(parameters[0]);
    vector.minimum = HalfToFloat(parameters[1]);
  });
  return vector;
}

void GpuWorld::Append(const KvWorld::Step& step, const HalfRows& qkv, const StepOptions& options) {
  const int64_t rows = std::max(options.rows, step.rows);
  const AttentionLimits limits = {
      .rows = rows, .items = 4096, .parts = 4096, .table_entries = 1024};
  AttentionPlan plan;
  ASSERT_TRUE(PlanAttention(model(), options.device, limits, step.spans, &plan).ok());
  emulator::Stream stream(options.order_seed);
  ASSERT_EQ(LaunchRopeAppend(&stream, {.qkv = qkv.Matrix(),
                                       .heads = shape_.heads,
                                       .kv = world_.kv(),
                                       .cos_sin = cos_sin_.data(),
                                       .q_gain = q_gain_.empty() ? nullptr : q_gain_.data(),
                                       .k_gain = k_gain_.empty() ? nullptr : k_gain_.data(),
                                       .qk_epsilon = 1e-6f,
                                       .positions = plan.positions.data(),
                                       .pages = plan.pages.data(),
                                       .layer = layer()}),
            0);
  stream.Synchronize();
}

void GpuWorld::Attend(const KvWorld::Step& step, const HalfRows& qkv, const Activation& out,
                      const StepOptions& options) {
  const int64_t rows = std::max(options.rows, step.rows);
  AttentionLimits limits = ChooseAttentionLimits(model(), options.device, rows);
  limits.table_entries = 1024;
  AttentionPlan plan;
  const Status planned = PlanAttention(model(), options.device, limits, step.spans, &plan);
  ASSERT_TRUE(planned.ok()) << planned.message();
  ASSERT_LE(plan.parts, limits.parts);

  // Exactly as large as they must be, so that a sanitizer sees what goes beyond.
  std::vector<Vec16> parts(static_cast<size_t>(AttentionPartBytes(model(), plan.parts) / 16),
                           kUnwritten);
  std::vector<Vec16> weights(
      static_cast<size_t>((AttentionWeightBytes(model(), plan.parts) + 15) / 16), kUnwritten);
  std::vector<int32_t> arrived(static_cast<size_t>(rows));
  const AttentionParts view = {.out = reinterpret_cast<float*>(parts.data()),
                               .weights = reinterpret_cast<float*>(weights.data()),
                               .first_parts = plan.first_parts.data(),
                               .part_counts = plan.part_counts.data()};
  const AttentionTiles tiles = ChooseAttentionTiles(model());
  emulator::Stream stream(options.order_seed);
  for (const bool wide : {false, true}) {
    const std::vector<AttentionItem>& items = wide ? plan.wide : plan.narrow;
    const int width = wide ? tiles.wide : tiles.narrow;
    const auto count = static_cast<int32_t>(items.size());
    const FloatMatrix q = qkv.Matrix();
    const int planned_blocks = AttentionBlocks(model(), width, options.device);
    if (count == 0) continue;
    ASSERT_EQ(LaunchAttention(&stream, {.q = {q.data, q.type, q.rows, world_.out_width(), q.stride},
                                        .heads = shape_.heads,
                                        .kv = world_.kv(),
                                        .scale = world_.scale(),
                                        .sliding_window = shape_.window,
                                        .layer = layer(),
                                        .block_tables = plan.block_tables.data(),
                                        .items = items.data(),
                                        .item_count = &count,
                                        .tiles = width,
                                        .blocks = options.blocks > 0 ? options.blocks
                                                                     : std::min(planned_blocks, 3),
                                        .parts = view}),
              0);
    stream.Synchronize();  // `count` must outlive the launch
  }
  ASSERT_EQ(LaunchAttentionCombine(&stream, {.parts = view,
                                             .heads = shape_.heads,
                                             .head_dim = shape_.head_dim,
                                             .out = out,
                                             .arrived = arrived.data()}),
            0);
  stream.Synchronize();
  for (const int32_t left : arrived) ASSERT_EQ(left, 0);
  ASSERT_EQ(stream.counters().load_matrix_conflicts, 0);
}

}  // namespace qserve::kernels::cuda::testing
