#include "worker/exec/format_flags.h"

#include <fmt/format.h>

#include "common/status_macros.h"

namespace qserve::worker::exec {

void Declare(cli::Options& options, FormatFlags& flags) {
  options.Add("kv-cache-memory", flags.kv_cache_memory,
              "KV cache of the replica: bytes, KiB, MiB or GiB; auto");
  options.Add("kv-cache-dtype", flags.kv_cache_dtype, "auto, int4, int8, fp16 (fp32: CPU only)");
  options.Add("lm-head-dtype", flags.lm_head_dtype, "auto, fp16, int8 or int4");
  options.Add("quantize", flags.quantize,
              "Quantize a full-precision model at load: none, rtn-g128 or rtn-gchn");
  options.Add("full-precision-dtype", flags.full_precision_dtype,
              "Multiply full-precision linears in fp32 or bf16 (CPU only)");
}

absl::Status Apply(const FormatFlags& flags, ExecutorOptions& options) {
  if (flags.kv_cache_memory != "auto") {
    const auto bytes = cli::ParseBytes(flags.kv_cache_memory);
    if (!bytes || *bytes == 0) {
      return absl::InvalidArgumentError(
          fmt::format("--kv-cache-memory must be auto or a size such as 4GiB, got '{}'",
                      flags.kv_cache_memory));
    }
    options.kv_cache_memory = *bytes;
  }
  ASSIGN_OR_RETURN(options.kv_cache_dtype, ParseKvCacheType(flags.kv_cache_dtype));
  ASSIGN_OR_RETURN(options.lm_head_dtype, ParseLmHeadType(flags.lm_head_dtype));
  ASSIGN_OR_RETURN(options.quantize, ParseQuantize(flags.quantize));
  ASSIGN_OR_RETURN(options.full_precision_type, ParseFullPrecisionType(flags.full_precision_dtype));
  if (options.full_precision_type != kernels::FloatType::kF32 && options.device == "cuda") {
    return absl::InvalidArgumentError(
        "--full-precision-dtype bf16 is for CPUs: GPUs serve no full-precision linears");
  }
  return absl::OkStatus();
}

}  // namespace qserve::worker::exec
