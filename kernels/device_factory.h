// The one place that names concrete backends. Used by worker/exec/rank.cc, quantizer, bench and
// tests.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace qserve::kernels {

struct DeviceOptions {
  std::string device = "auto";   // auto | cpu | cuda: auto takes a GPU where there is one
  int ordinal = 0;               // which GPU
  int threads = 0;               // of the host for this rank, 0 = all cores; a GPU's pack weights
  std::string cpu_isa = "auto";  // auto | reference | avx2 | avxvnni | avx512vnni | avx512amx; auto
                                 // also reads QSERVE_CPU_ISA
  // How full-precision linears (kFloat) are multiplied: kF32, or on a CPU kBf16, weights and
  // activations rounded to it and sums in fp32. Another kernel_family.
  FloatType linear_type = FloatType::kF32;
  // The floating-point type of the model: a GPU's activations are bf16 if it is, else fp16.
  FloatType model_type = FloatType::kF16;
};

// Unsupported, with what there is, when the device or ISA is absent.
StatusOr<std::unique_ptr<Backend>> CreateBackend(const DeviceOptions& options);

// CPU ISAs that run on this machine, best first; always ends with "reference".
std::vector<std::string> SupportedCpuIsas();

}  // namespace qserve::kernels
