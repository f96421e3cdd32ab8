// How a rank of a replica runs its model: what the worker's flags say, decided and validated in
// worker/main. The same on every rank of a group but for `rank`,
// `device_ordinal` and `processors`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/weights.h"

namespace qserve::worker::exec {

// --kv-cache-dtype. kFp32 exists on the CPU only, for baselines.
enum class KvCacheType { kAuto, kInt4, kInt8, kFp16, kFp32 };

struct ExecutorOptions {
  std::string model_dir;
  std::string device = "auto";  // auto | cpu | cuda
  int device_ordinal = 0;
  int threads = 0;  // of this rank; 0: all cores / tensor_parallel_size
  // --pin-threads: thread t of this rank stays on processors[t], thread 0 being the executor's. At
  // least `threads` of them, or none: the threads go where they like.
  std::vector<int> processors;
  std::string cpu_isa = "auto";
  // How linears of a full-precision model are multiplied: kF32, or on a CPU kBf16.
  kernels::FloatType full_precision_type = kernels::FloatType::kF32;
  int rank = 0;
  int tensor_parallel_size = 1;
  int32_t max_model_len = 0;  // 0: what the model was made for
  int32_t max_num_seqs = 256;
  int64_t max_num_batched_tokens = 2048;
  int64_t kv_cache_memory = 0;  // bytes of the whole replica, 0: a default from what the device has
  bool record_steps = true;     // decoding steps as CUDA graphs, where the device can
  KvCacheType kv_cache_dtype = KvCacheType::kAuto;
  model::LmHeadType lm_head_dtype = model::LmHeadType::kAuto;
  checkpoint::LoadQuantization quantize = checkpoint::LoadQuantization::kNone;
};

// Flag values to what they mean; InvalidArgument names the legal ones.
absl::StatusOr<KvCacheType> ParseKvCacheType(std::string_view text);  // auto|int4|int8|fp16|fp32
absl::StatusOr<model::LmHeadType> ParseLmHeadType(std::string_view text);  // auto|fp16|int8|int4
absl::StatusOr<checkpoint::LoadQuantization> ParseQuantize(
    std::string_view text);  // none|rtn-g128|rtn-gchn
absl::StatusOr<kernels::FloatType> ParseFullPrecisionType(std::string_view text);  // fp32|bf16

// A hash of everything that must be equal on all ranks: compared at start-up, so that a group never
// runs with mixed flags.
uint64_t GroupConfigHash(const ExecutorOptions& options);

}  // namespace qserve::worker::exec
