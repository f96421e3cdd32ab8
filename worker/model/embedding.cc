#include "worker/model/embedding.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "common/status_macros.h"
#include "kernels/ops.h"
#include "worker/checkpoint/model_layout.h"
#include "worker/model/activations.h"
#include "worker/model/device_status.h"
#include "worker/model/read_ahead.h"

namespace qserve::worker::model {
namespace {

using checkpoint::Checkpoint;
using checkpoint::FloatMatrix;
using checkpoint::kEmbeddingTensor;

// What a copy needs beside the mapped file, times the threads.
constexpr int64_t kCopiedRows = 256;
// Read from the file before they are looked up: few enough to stay in a core's cache.
constexpr int32_t kStoredRows = 32;

absl::StatusOr<kernels::Buffer> Allocate(kernels::Backend& backend, int64_t bytes) {
  return ToAbsl(backend.Allocate(bytes, "weights"));
}

}  // namespace

absl::StatusOr<Embedding> Embedding::Load(const Checkpoint& checkpoint, const Shard& shard,
                                          kernels::Backend& backend, int reader_threads,
                                          const std::function<void(int64_t bytes)>& copied) {
  const int64_t cols = checkpoint.config().hidden_size;
  Embedding embedding;
  embedding.first_id_ = shard.vocab.begin;
  embedding.table_ = {.first_id = static_cast<int32_t>(shard.vocab.begin),
                      .rows = shard.vocab.size(),
                      .cols = cols};
  if (shard.vocab.size() == 0) return embedding;
  // Rows are read into one place after another: only where nothing still computes on the last ones.
  if (!backend.info().host_memory || backend.info().asynchronous) {
    RETURN_IF_ERROR(embedding.Copy(checkpoint, shard, backend, reader_threads, copied));
    return embedding;
  }
  ASSIGN_OR_RETURN(embedding.stored_, checkpoint.OpenRows(kEmbeddingTensor, shard.vocab, cols));
  embedding.stored_->Prefetch();
  ASSIGN_OR_RETURN(embedding.memory_,
                   Allocate(backend, kStoredRows * embedding.stored_->row_bytes()));
  embedding.table_ = {.data = embedding.memory_.data(),
                      .type = embedding.stored_->type(),
                      .first_id = 0,
                      .rows = kStoredRows,
                      .cols = cols};
  return embedding;
}

absl::Status Embedding::Copy(const Checkpoint& checkpoint, const Shard& shard,
                             kernels::Backend& backend, int reader_threads,
                             const std::function<void(int64_t bytes)>& copied) {
  const auto read = [&](int64_t chunk) {
    const int64_t begin = shard.vocab.begin + chunk * kCopiedRows;
    return checkpoint.ReadRows(
        kEmbeddingTensor, {begin, std::min(shard.vocab.end, begin + kCopiedRows)}, table_.cols);
  };
  const auto copy = [&](int64_t chunk, FloatMatrix part) -> absl::Status {
    const int64_t row_bytes = table_.cols * kernels::BytesOf(part.type);
    if (chunk == 0) {
      ASSIGN_OR_RETURN(memory_, Allocate(backend, table_.rows * row_bytes));
      table_.type = part.type;
      table_.data = memory_.data();
    }
    backend.CopyToDevice(memory_.as<uint8_t>() + chunk * kCopiedRows * row_bytes, part.data.data(),
                         part.rows * row_bytes);
    copied(part.rows * row_bytes);
    return absl::OkStatus();
  };
  return ReadAhead<FloatMatrix>((table_.rows + kCopiedRows - 1) / kCopiedRows, reader_threads, read,
                                copy);
}

void Embedding::LookUp(kernels::Backend& backend, std::span<const int32_t> token_ids,
                       const int32_t* sampled_ids, const kernels::FloatMatrix& out) const {
  if (stored_) return LookUpStored(backend, token_ids, sampled_ids, out);
  kernels::ops::Embed(
      backend, {.table = table_, .token_ids = token_ids, .sampled_ids = sampled_ids, .out = out});
}

// Some rows at a time: each that is here is read to a place of memory_ and looked up there.
void Embedding::LookUpStored(kernels::Backend& backend, std::span<const int32_t> token_ids,
                             const int32_t* sampled_ids, const kernels::FloatMatrix& out) const {
  std::array<int32_t, kStoredRows> places;
  for (int64_t begin = 0; begin < std::ssize(token_ids); begin += kStoredRows) {
    const int64_t count = std::min<int64_t>(kStoredRows, std::ssize(token_ids) - begin);
    for (int32_t i = 0; i < count; ++i) {
      const int32_t given = token_ids[static_cast<size_t>(begin + i)];
      const int64_t row = int64_t{given >= 0 ? given : sampled_ids[~given]} - first_id_;
      const bool here = row >= 0 && row < stored_->rows();
      places[static_cast<size_t>(i)] = here ? i : kStoredRows;  // outside the table: zeros
      if (!here) continue;
      const absl::Status status =
          stored_->Read(row, memory_.as<std::byte>() + i * stored_->row_bytes());
      if (!status.ok()) {
        return backend.Fail({kernels::StatusCode::kDevice, std::string(status.message())});
      }
    }
    kernels::ops::Embed(backend, {.table = table_,
                                  .token_ids = std::span(places).first(static_cast<size_t>(count)),
                                  .out = RowsOf(out, begin, count)});
  }
}

}  // namespace qserve::worker::model
