// The floating-point operations of `avx2`: its inner loops under the common operations. Compiled
// without flags of its own.
#include "kernels/cpu/float_ops.h"
#include "kernels/cpu/float_run.h"

namespace qserve::kernels::cpu::avx2 {

Status Embed(OpContext& context, const EmbedArgs& args) {
  return RunEmbed(kFloatKernels, context, args);
}
Status Norm(OpContext& context, const NormArgs& args) {
  return RunNorm(kFloatKernels, context, args);
}
Status RopeAppend(OpContext& context, const RopeAppendArgs& args) {
  return RunRopeAppend(kFloatKernels, context, args);
}
Status Attention(OpContext& context, const AttentionArgs& args) {
  return RunAttention(kFloatKernels, context, args);
}
Status SiluMul(OpContext& context, const SiluMulArgs& args) {
  return RunSiluMul(kFloatKernels, context, args);
}
Status Sample(OpContext& context, const SampleArgs& args) {
  return SampleWith(kFloatKernels.sample, context, args);
}

}  // namespace qserve::kernels::cpu::avx2
