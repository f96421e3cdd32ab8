// What one CPU instruction set provides. CpuBackend holds one table, chosen at construction, and
// calls nothing else: there is one table per ISA, `reference` being the oracle. Every entry of
// every table gives the same bits (tests/ops asserts it).
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

namespace qserve::kernels::cpu {

// Scratch that lives as long as the backend and grows when needed, one block per thread and one
// shared; contents are undefined between operations.
class Workspace;

struct OpContext {
  ThreadPool& pool;
  Workspace& workspace;
};

// Entries return a Status: ok, or what the backend latches.
struct OpTable {
  const char* isa = nullptr;
  bool (*supported)() = nullptr;  // by this machine
  StatusOr<std::unique_ptr<PackedLinear>> (*pack)(ThreadPool& pool,
                                                  const LinearWeight& weight) = nullptr;
  // From pieces (Backend::PackPieces); null where weights are packed whole.
  StatusOr<std::unique_ptr<PackedLinear>> (*pack_pieces)(ThreadPool& pool, int64_t rows,
                                                         const RowReader& read) = nullptr;
  Status (*linear)(OpContext& context, const LinearArgs& args) = nullptr;
  // The same of kFloat weights packed by PackBf16 (bf16_panel.h), by bf16 products.
  Status (*linear_bf16)(OpContext& context, const LinearArgs& args) = nullptr;
  Status (*embed)(OpContext& context, const EmbedArgs& args) = nullptr;
  Status (*norm)(OpContext& context, const NormArgs& args) = nullptr;
  Status (*rope_append)(OpContext& context, const RopeAppendArgs& args) = nullptr;
  Status (*attention)(OpContext& context, const AttentionArgs& args) = nullptr;
  Status (*silu_mul)(OpContext& context, const SiluMulArgs& args) = nullptr;
  Status (*sample)(OpContext& context, const SampleArgs& args) = nullptr;
  // Where `linear` takes another way for many tokens: that way for any number of them. For tests.
  Status (*linear_by_tiles)(OpContext& context, const LinearArgs& args) = nullptr;
  // Where `linear_bf16` has tiles: whether this CPU's keep to its arithmetic. For tests.
  bool (*may_use_bf16_tiles)() = nullptr;
};

// Best first; `reference` last. Those the compiler or architecture cannot build are absent from the
// list.
const std::vector<const OpTable*>& AllOpTables();

}  // namespace qserve::kernels::cpu
