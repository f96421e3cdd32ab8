// The table of inner loops for one 16-lane type. Included by one translation unit per instruction
// set.
#pragma once

#include "kernels/cpu/attention_impl.h"
#include "kernels/cpu/norm_impl.h"
#include "kernels/cpu/rope_impl.h"
#include "kernels/cpu/sample_impl.h"

namespace qserve::kernels::cpu {

template <class V>
constexpr FloatKernels MakeFloatKernels() {
  return {.embed_row = EmbedRow<V>,
          .add_row = AddRow<V>,
          .norm_row = NormRow<V>,
          .silu_row = SiluRow<V>,
          .quantize_row = QuantizeRowFast<V>,
          .rotate_head = RotateHead<V>,
          .store_key = StoreKey<V>,
          .store_value = StoreValue<V>,
          .scale_query = ScaleQuery<V>,
          .attention_chunk = AttentionChunkFast<V>,
          .merge = MergeParts<V>,
          .multiply = MultiplyRow<V>,
          .sample = {.scan = ScanRow<V>,
                     .exp_sum = ExpSumRow<V>,
                     .exp = ExpOfRow<V>,
                     .divide = DivideRow<V>,
                     .draw = DrawRow<V>}};
}

}  // namespace qserve::kernels::cpu
