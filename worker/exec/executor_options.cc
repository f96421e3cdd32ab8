#include "worker/exec/executor_options.h"

#include <span>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "common/hashing.h"

namespace qserve::worker::exec {
namespace {

template <class T>
absl::StatusOr<T> Choose(std::string_view what, std::string_view text,
                         const std::vector<std::pair<std::string_view, T>>& choices) {
  std::string legal;
  for (const auto& [name, value] : choices) {
    if (name == text) return value;
    legal += fmt::format("{}{}", legal.empty() ? "" : ", ", name);
  }
  return absl::InvalidArgumentError(fmt::format("{} \"{}\" is not one of {}", what, text, legal));
}

}  // namespace

absl::StatusOr<KvCacheType> ParseKvCacheType(std::string_view text) {
  return Choose<KvCacheType>("kv-cache-dtype", text,
                             {{"auto", KvCacheType::kAuto},
                              {"int4", KvCacheType::kInt4},
                              {"int8", KvCacheType::kInt8},
                              {"fp16", KvCacheType::kFp16},
                              {"fp32", KvCacheType::kFp32}});
}

absl::StatusOr<model::LmHeadType> ParseLmHeadType(std::string_view text) {
  return Choose<model::LmHeadType>("lm-head-dtype", text,
                                   {{"auto", model::LmHeadType::kAuto},
                                    {"fp16", model::LmHeadType::kFp16},
                                    {"int8", model::LmHeadType::kInt8},
                                    {"int4", model::LmHeadType::kInt4}});
}

absl::StatusOr<checkpoint::LoadQuantization> ParseQuantize(std::string_view text) {
  using checkpoint::LoadQuantization;
  return Choose<LoadQuantization>("quantize", text,
                                  {{"none", LoadQuantization::kNone},
                                   {"rtn-g128", LoadQuantization::kRtnGroup128},
                                   {"rtn-gchn", LoadQuantization::kRtnPerChannel}});
}

absl::StatusOr<kernels::FloatType> ParseFullPrecisionType(std::string_view text) {
  using kernels::FloatType;
  return Choose<FloatType>("full-precision-dtype", text,
                           {{"fp32", FloatType::kF32}, {"bf16", FloatType::kBf16}});
}

uint64_t GroupConfigHash(const ExecutorOptions& options) {
  const std::string text =
      fmt::format("{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}", options.device, options.tensor_parallel_size,
                  options.max_model_len, options.max_num_seqs, options.max_num_batched_tokens,
                  options.kv_cache_memory, static_cast<int>(options.kv_cache_dtype),
                  static_cast<int>(options.lm_head_dtype), static_cast<int>(options.quantize),
                  options.record_steps, static_cast<int>(options.full_precision_type));
  return HashSpan(std::span<const char>(text));
}

}  // namespace qserve::worker::exec
