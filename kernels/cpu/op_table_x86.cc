// The tables of x86-64, best first.
#include "kernels/cpu/amx_permission.h"
#include "kernels/cpu/bf16_panel.h"
#include "kernels/cpu/float_ops.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/op_table.h"

namespace qserve::kernels::cpu {
namespace {

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool HasAvxVnni() { return HasAvx2() && __builtin_cpu_supports("avxvnni"); }
bool HasAvx512Vnni() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
bool HasAvx512Amx() { return HasAvx512Vnni() && MayUseTileRegisters(); }

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

constexpr OpTable kAvx2 = {.isa = "avx2",
                           .supported = HasAvx2,
                           .pack = PackPanels,
                           .pack_pieces = PackPanelPieces,
                           .linear = avx2::Linear,
                           .linear_bf16 = avx2::LinearBf16,
                           .embed = avx2::Embed,
                           .norm = avx2::Norm,
                           .rope_append = avx2::RopeAppend,
                           .attention = avx2::Attention,
                           .silu_mul = avx2::SiluMul,
                           .sample = avx2::Sample};

constexpr OpTable kAvxVnni = {.isa = "avxvnni",
                              .supported = HasAvxVnni,
                              .pack = PackPanels,
                              .pack_pieces = PackPanelPieces,
                              .linear = avxvnni::Linear,
                              .linear_bf16 = avx2::LinearBf16,
                              .embed = avx2::Embed,
                              .norm = avx2::Norm,
                              .rope_append = avx2::RopeAppend,
                              .attention = avx2::Attention,
                              .silu_mul = avx2::SiluMul,
                              .sample = avx2::Sample};

constexpr OpTable kAvx512Vnni = {.isa = "avx512vnni",
                                 .supported = HasAvx512Vnni,
                                 .pack = PackPanels,
                                 .pack_pieces = PackPanelPieces,
                                 .linear = avx512vnni::Linear,
                                 .linear_bf16 = avx512::LinearBf16,
                                 .embed = avx512::Embed,
                                 .norm = avx512::Norm,
                                 .rope_append = avx512::RopeAppend,
                                 .attention = avx512::Attention,
                                 .silu_mul = avx512::SiluMul,
                                 .sample = avx512::Sample};

constexpr OpTable kAvx512Amx = {.isa = "avx512amx",
                                .supported = HasAvx512Amx,
                                .pack = PackPanels,
                                .pack_pieces = PackPanelPieces,
                                .linear = avx512amx::Linear,
                                .linear_bf16 = avx512amx::LinearBf16,
                                .embed = avx512::Embed,
                                .norm = avx512::Norm,
                                .rope_append = avx512::RopeAppend,
                                .attention = avx512::Attention,
                                .silu_mul = avx512::SiluMul,
                                .sample = avx512::Sample,
                                .linear_by_tiles = avx512amx::LinearByTiles,
                                .may_use_bf16_tiles = avx512amx::MayUseBf16Tiles};

}  // namespace

const std::vector<const OpTable*>& AllOpTables() {
  static const std::vector<const OpTable*> tables = {&kAvx512Amx, &kAvx512Vnni, &kAvxVnni, &kAvx2,
                                                     &kReference};
  return tables;
}

}  // namespace qserve::kernels::cpu
