// Norm and rotation of q and k heads, and the storing of k and v: plain form. Called through
// OpTable `reference`.
#include "kernels/cpu/float_ops.h"
#include "kernels/cpu/kv_reference.h"
#include "kernels/cpu/math.h"
#include "kernels/quant/kv_quant.h"

namespace qserve::kernels::cpu::reference {
namespace {

constexpr int kMaxHeadDim = 256;

void NormHead(float* x, int n, const float* gain, float epsilon) {
  if (gain == nullptr) return;
  LaneSum squares;
  for (int c = 0; c < n; ++c) squares.AddProduct(c, x[c], x[c]);
  const float inverse = 1.0f / std::sqrt(squares.Total() / static_cast<float>(n) + epsilon);
  for (int c = 0; c < n; ++c) x[c] = (x[c] * inverse) * gain[c];
}

// Channel i and i + n / 2 turn by the angle of `cos_sin`.
void Rotate(float* x, int n, const float* cos_sin) {
  const int half = n / 2;
  for (int i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    const float cosine = cos_sin[i], sine = cos_sin[half + i];
    x[i] = std::fma(a, cosine, -(b * sine));
    x[i + half] = std::fma(b, cosine, a * sine);
  }
}

// Writes `x` to the 16-blocks that `address(c)` gives for channel c.
void StoreVector(const KvShape& kv, const float* x, uint8_t* head, int position, bool is_value) {
  const KvPageLayout layout(kv.format, kv.head_dim);
  const int levels = KvLevels(kv.format);
  uint8_t codes[kMaxHeadDim] = {};
  if (levels > 0) {
    const KvParameters parameters = QuantizeKv(x, kv.head_dim, levels, codes);
    std::memcpy(Parameter(head, layout, is_value ? 2 : 0, position), &parameters.scale_half, 2);
    std::memcpy(Parameter(head, layout, is_value ? 3 : 1, position), &parameters.minimum_half, 2);
  }
  for (int c = 0; c < kv.head_dim; ++c) {
    const float value = levels > 0 ? static_cast<float>(codes[c]) : x[c];
    if (is_value) {
      StoreCode(kv.format, head + layout.ValueRow(position), kv.head_dim, c, value);
    } else {
      StoreCode(kv.format, head + layout.KeyRow(c), kKvPageTokens, position, value);
    }
  }
}

void AppendRow(const RopeAppendArgs& args, float* qkv, int64_t position, int32_t page) {
  const int dim = args.kv.head_dim;
  const float* cos_sin = args.cos_sin + position * dim;
  for (int h = 0; h < args.heads; ++h) {
    NormHead(qkv + h * dim, dim, args.q_gain, args.qk_epsilon);
    Rotate(qkv + h * dim, dim, cos_sin);
  }
  const KvPageLayout layout(args.kv.format, dim);
  const int slot = static_cast<int>(position % kKvPageTokens);
  for (int h = 0; h < args.kv.kv_heads; ++h) {
    float* key = qkv + (args.heads + h) * dim;
    const float* value = key + args.kv.kv_heads * dim;
    uint8_t* head = KvHead(args.layer, layout, page, h);
    NormHead(key, dim, args.k_gain, args.qk_epsilon);
    Rotate(key, dim, cos_sin);
    StoreVector(args.kv, key, head, slot, /*is_value=*/false);
    StoreVector(args.kv, value, head, slot, /*is_value=*/true);
  }
}

}  // namespace

Status RopeAppend(OpContext&, const RopeAppendArgs& args) {
  for (const SequenceSpan& sequence : args.sequences) {
    for (int64_t i = 0; i < sequence.row_count; ++i) {
      const int64_t position = sequence.first_position + i;
      const int32_t page = sequence.block_table[static_cast<size_t>(position / kKvPageTokens)];
      AppendRow(args, args.qkv.row(sequence.first_row + i), position, page);
    }
  }
  return {};
}

}  // namespace qserve::kernels::cpu::reference
