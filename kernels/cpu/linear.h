// The linear operation of each instruction set, as OpTable wants it: packing and multiplication. A
// weight is multiplied only by the functions of the namespace that packed it, except that the panel
// ones (all but `reference`) share one packed order.
#pragma once

#include <memory>

#include "kernels/cpu/op_table.h"

namespace qserve::kernels::cpu {

// Plain loops over the canonical weights: the oracle.
namespace reference {
StatusOr<std::unique_ptr<PackedLinear>> PackLinear(ThreadPool& pool, const LinearWeight& weight);
Status Linear(OpContext& context, const LinearArgs& args);
}  // namespace reference

// Panels of 16 rows (linear_panel.h), packed once for every instruction set below.
StatusOr<std::unique_ptr<PackedLinear>> PackPanels(ThreadPool& pool, const LinearWeight& weight);
// The same from pieces (Backend::PackPieces), for all formats but kFloat.
StatusOr<std::unique_ptr<PackedLinear>> PackPanelPieces(ThreadPool& pool, int64_t rows,
                                                        const RowReader& read);

namespace avx2 {
Status Linear(OpContext& context, const LinearArgs& args);
}
namespace avxvnni {
Status Linear(OpContext& context, const LinearArgs& args);
}
namespace avx512vnni {
Status Linear(OpContext& context, const LinearArgs& args);
}
// AMX-INT8 by tiles (amx_panel.h) where amx_choice.h expects that to be faster, else AVX512-VNNI.
namespace avx512amx {
Status Linear(OpContext& context, const LinearArgs& args);
// Tiles for every batch; full precision and fixed order as above. For tests.
Status LinearByTiles(OpContext& context, const LinearArgs& args);
}  // namespace avx512amx
// The VNNI kernels with the dot-product instruction written as a loop, 8 and 16 lanes wide: same
// packing, blocking and indexing, so that they are tested on machines without the instruction.
// Never chosen to serve.
namespace emulated {
Status LinearOf8Lanes(OpContext& context, const LinearArgs& args);
Status LinearOf16Lanes(OpContext& context, const LinearArgs& args);
// AMX's, with loops for tile registers and their instructions, for every batch.
Status LinearByTiles(OpContext& context, const LinearArgs& args);
}  // namespace emulated

}  // namespace qserve::kernels::cpu
