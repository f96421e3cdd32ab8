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

namespace avx2 {
Status Linear(OpContext& context, const LinearArgs& args);
}
namespace avxvnni {
Status Linear(OpContext& context, const LinearArgs& args);
}
namespace avx512vnni {
Status Linear(OpContext& context, const LinearArgs& args);
}
// The VNNI kernels with the dot-product instruction written as a loop, 8 and 16 lanes wide: same
// packing, blocking and indexing, so that they are tested on machines without the instruction.
// Never chosen to serve.
namespace emulated {
Status LinearOf8Lanes(OpContext& context, const LinearArgs& args);
Status LinearOf16Lanes(OpContext& context, const LinearArgs& args);
}  // namespace emulated

}  // namespace qserve::kernels::cpu
