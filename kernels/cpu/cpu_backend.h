// The CPU as a device. Everything runs inside the call, on the calling thread and the pool's; the
// operations themselves are in the op table that was chosen at construction. Made by
// kernels/device_factory.cc; one thread at a time uses it.
#pragma once

#include <memory>
#include <string>

#include "kernels/backend.h"

namespace qserve::kernels::cpu {

struct OpTable;

// threads 0: as many as the process may run on. isa: see ChooseOpTable. linear_type: kF32, or kBf16
// for bf16 products of full-precision weights (bf16_panel.h); Unsupported otherwise.
StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(int threads, const std::string& isa,
                                                    FloatType linear_type = FloatType::kF32);

// The same with a given table, which outlives the backend: for tests of tables that are never
// chosen by themselves.
std::unique_ptr<Backend> CreateCpuBackend(int threads, const OpTable& table,
                                          bool bf16_linears = false);

}  // namespace qserve::kernels::cpu
