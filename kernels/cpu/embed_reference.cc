// Embedding lookup, plain form. Called through OpTable `reference`.
#include "kernels/cpu/float_ops.h"
#include "kernels/quant/half.h"

namespace qserve::kernels::cpu::reference {
namespace {

float Element(const EmbeddingTable& table, int64_t index) {
  switch (table.type) {
    case FloatType::kF32:
      return static_cast<const float*>(table.data)[index];
    case FloatType::kF16:
      return HalfToFloat(static_cast<const uint16_t*>(table.data)[index]);
    case FloatType::kBf16:
      return Bf16ToFloat(static_cast<const uint16_t*>(table.data)[index]);
  }
  return 0;
}

}  // namespace

Status Embed(OpContext&, const EmbedArgs& args) {
  for (int64_t r = 0; r < args.out.rows; ++r) {
    const int32_t given = args.token_ids[static_cast<size_t>(r)];
    const int32_t id = given >= 0 ? given : args.sampled_ids[~given];
    const int64_t row = int64_t{id} - args.table.first_id;
    const bool here = row >= 0 && row < args.table.rows;
    for (int64_t c = 0; c < args.out.cols; ++c) {
      args.out.row(r)[c] = here ? Element(args.table, row * args.table.cols + c) : 0.0f;
    }
  }
  return {};
}

}  // namespace qserve::kernels::cpu::reference
