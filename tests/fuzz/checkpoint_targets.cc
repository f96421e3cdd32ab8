// See checkpoint_targets.h.
#include "tests/fuzz/checkpoint_targets.h"

#include <algorithm>
#include <string>
#include <vector>

#include "common/check.h"
#include "kernels/quant/qserve_pack.h"
#include "worker/checkpoint/generation_config.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/pickled_state.h"
#include "worker/checkpoint/safetensors.h"
#include "worker/checkpoint/torch_file.h"

namespace qserve::fuzz {

namespace ckpt = worker::checkpoint;

void FuzzSafetensors(std::span<const uint8_t> bytes) {
  const auto tensors = ckpt::ParseSafetensors(std::as_bytes(bytes));
  if (!tensors.ok()) {
    QSERVE_CHECK(!tensors.status().message().empty());
    return;
  }
  int64_t covered = 0;
  for (const ckpt::TensorEntry& tensor : *tensors) {
    int64_t needed = ckpt::DtypeBytes(tensor.dtype);
    for (const int64_t dimension : tensor.shape) {
      QSERVE_CHECK(dimension >= 0 && !__builtin_mul_overflow(needed, dimension, &needed));
    }
    QSERVE_CHECK(tensor.begin >= 8 && tensor.begin <= tensor.end);
    QSERVE_CHECK(static_cast<size_t>(tensor.end) <= bytes.size());
    QSERVE_CHECK(tensor.end - tensor.begin == needed);
    covered += needed;
  }
  QSERVE_CHECK(static_cast<size_t>(covered) <= bytes.size());
}

void FuzzModelConfig(std::span<const uint8_t> bytes) {
  const auto zero = std::find(bytes.begin(), bytes.end(), uint8_t{0});
  const std::string config(bytes.begin(), zero);
  const std::string generation(zero == bytes.end() ? zero : zero + 1, bytes.end());
  const auto parsed = ckpt::ParseModelConfig(config, generation);
  const auto defaults = ckpt::ParseGenerationDefaults(generation);
  if (defaults.ok() && defaults->top_p) QSERVE_CHECK(*defaults->top_p > 0 && *defaults->top_p <= 1);
  if (!parsed.ok()) return;
  QSERVE_CHECK(parsed->hidden_size > 0 && parsed->layers > 0 && parsed->vocab_size > 0);
  QSERVE_CHECK(parsed->heads > 0 && parsed->kv_heads > 0 && parsed->heads % parsed->kv_heads == 0);
  QSERVE_CHECK(parsed->head_dim > 0 && parsed->head_dim % 2 == 0);
  QSERVE_CHECK(static_cast<int64_t>(parsed->sliding_window.size()) == parsed->layers);
  QSERVE_CHECK(parsed->rope.theta >= 1.0 && parsed->rope.factor >= 1.0);
  for (const int32_t id : parsed->eos_token_ids) QSERVE_CHECK(id >= 0 && id < parsed->vocab_size);
}

namespace {

// Every element of the view lies before `end`, and there are no more than that.
void CheckView(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
               int64_t begin, int64_t element, int64_t end) {
  QSERVE_CHECK(shape.size() == strides.size());
  int64_t last = begin, count = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    QSERVE_CHECK(shape[i] >= 0 && strides[i] >= 0);
    QSERVE_CHECK(!__builtin_mul_overflow(count, shape[i], &count));
    if (shape[i] > 0) last += (shape[i] - 1) * strides[i] * element;
  }
  QSERVE_CHECK(begin >= 0 && (count == 0 || last + element <= end));
  QSERVE_CHECK(count <= end);
}

}  // namespace

void FuzzTorchFile(std::span<const uint8_t> bytes) {
  const auto tensors = ckpt::ParseTorchFile(std::as_bytes(bytes));
  if (!tensors.ok()) {
    QSERVE_CHECK(!tensors.status().message().empty());
    return;
  }
  for (const ckpt::TorchTensor& tensor : *tensors) {
    CheckView(tensor.shape, tensor.strides, static_cast<int64_t>(tensor.begin),
              ckpt::DtypeBytes(tensor.dtype), static_cast<int64_t>(bytes.size()));
  }
}

void FuzzPickledState(std::span<const uint8_t> bytes) {
  const auto tensors =
      ckpt::ReadPickledState({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (!tensors.ok()) {
    QSERVE_CHECK(!tensors.status().message().empty());
    return;
  }
  for (const ckpt::PickledTensor& tensor : *tensors)
    CheckView(tensor.shape, tensor.strides, tensor.offset, 1, tensor.storage_elements);
}

void FuzzPackedWeight(std::span<const uint8_t> bytes) {
  constexpr int64_t kRows = 32, kColumns = 128;
  std::vector<uint8_t> data(bytes.begin(), bytes.end());
  data.resize(kRows * kColumns / 2 + 4 * kRows, 1);
  const std::span<const uint8_t> all(data);
  const auto codes = all.first(kRows * kColumns / 2), rest = all.subspan(kRows * kColumns / 2);
  kernels::QServeView view{
      .n = kRows, .k = kColumns, .qweight = codes, .s1_scales = rest.first(2 * kRows)};
  for (const auto format :
       {kernels::WeightFormat::kW4Group128, kernels::WeightFormat::kW4PerChannel}) {
    const bool group = format == kernels::WeightFormat::kW4Group128;
    view.format = format;
    view.s1_szeros = group ? std::span<const uint8_t>() : rest.last(2 * kRows);
    view.s2_scales = group ? rest.subspan(2 * kRows, kRows) : std::span<const uint8_t>();
    view.s2_zeros = group ? rest.last(kRows) : std::span<const uint8_t>();
    for (const int64_t begin : {0, 32, 96}) {
      const auto weight = kernels::UnpackQServe(view, {0, kRows, begin, kColumns}, nullptr);
      if (weight.ok()) QSERVE_CHECK(kernels::Validate(*weight).ok());
    }
  }
}

}  // namespace qserve::fuzz
