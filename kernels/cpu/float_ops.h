// The floating-point operations of each instruction set, as OpTable wants them: everything but the
// linears. `reference` is the oracle: plain loops, any architecture. `avx2` and `avx512` run one
// set of templates over 16 lanes (vec16.h); `emulated` runs the same templates over a plain array,
// so that their blocking and indexing are tested where an instruction set is absent. All give the
// same bits. Called by the executor's thread through CpuBackend; arguments were checked by
// kernels/ops.cc.
#pragma once

#include "kernels/cpu/op_table.h"

namespace qserve::kernels::cpu {

namespace reference {
Status Embed(OpContext& context, const EmbedArgs& args);
Status Norm(OpContext& context, const NormArgs& args);
Status RopeAppend(OpContext& context, const RopeAppendArgs& args);
Status Attention(OpContext& context, const AttentionArgs& args);
Status SiluMul(OpContext& context, const SiluMulArgs& args);
Status Sample(OpContext& context, const SampleArgs& args);
}  // namespace reference

namespace emulated {
Status Embed(OpContext& context, const EmbedArgs& args);
Status Norm(OpContext& context, const NormArgs& args);
Status RopeAppend(OpContext& context, const RopeAppendArgs& args);
Status Attention(OpContext& context, const AttentionArgs& args);
Status SiluMul(OpContext& context, const SiluMulArgs& args);
Status Sample(OpContext& context, const SampleArgs& args);
}  // namespace emulated

// Defined on x86-64 only; called only where the CPU has the instructions.
namespace avx2 {
Status Embed(OpContext& context, const EmbedArgs& args);
Status Norm(OpContext& context, const NormArgs& args);
Status RopeAppend(OpContext& context, const RopeAppendArgs& args);
Status Attention(OpContext& context, const AttentionArgs& args);
Status SiluMul(OpContext& context, const SiluMulArgs& args);
Status Sample(OpContext& context, const SampleArgs& args);
}  // namespace avx2

namespace avx512 {
Status Embed(OpContext& context, const EmbedArgs& args);
Status Norm(OpContext& context, const NormArgs& args);
Status RopeAppend(OpContext& context, const RopeAppendArgs& args);
Status Attention(OpContext& context, const AttentionArgs& args);
Status SiluMul(OpContext& context, const SiluMulArgs& args);
Status Sample(OpContext& context, const SampleArgs& args);
}  // namespace avx512

}  // namespace qserve::kernels::cpu
