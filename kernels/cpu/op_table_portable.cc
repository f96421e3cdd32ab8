// The tables of an architecture for which no fast kernels are written. CMake takes op_table_x86.cc
// in its place on x86-64.
#include "kernels/cpu/bf16_panel.h"
#include "kernels/cpu/float_ops.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/op_table.h"

namespace qserve::kernels::cpu {
namespace {

constexpr OpTable kReference = {.isa = "reference",
                                .supported = [] { return true; },
                                .pack = reference::PackLinear,
                                .linear = reference::Linear,
                                .linear_bf16 = reference::LinearBf16,
                                .embed = reference::Embed,
                                .norm = reference::Norm,
                                .rope_append = reference::RopeAppend,
                                .attention = reference::Attention,
                                .silu_mul = reference::SiluMul,
                                .sample = reference::Sample};

}  // namespace

const std::vector<const OpTable*>& AllOpTables() {
  static const std::vector<const OpTable*> tables = {&kReference};
  return tables;
}

}  // namespace qserve::kernels::cpu
