// Rows of a floating-point matrix that stay in their file and are read one at a time: an embedding
// of which a step wants few. Made by Checkpoint::OpenRows, which it may outlive; const methods are
// thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "absl/status/status.h"
#include "common/check.h"
#include "common/random_access_file.h"
#include "kernels/types.h"

namespace qserve::worker::checkpoint {

class StoredRows {
 public:
  // [rows, cols] of `type` from byte `begin` of `file` on; `name` is said in errors.
  StoredRows(RandomAccessFile file, std::string name, int64_t begin, kernels::FloatType type,
             int64_t rows, int64_t cols)
      : file_(std::move(file)),
        name_(std::move(name)),
        begin_(begin),
        type_(type),
        rows_(rows),
        cols_(cols) {}

  kernels::FloatType type() const { return type_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t row_bytes() const { return cols_ * kernels::BytesOf(type_); }

  // Asks the system to have all rows in its page cache.
  void Prefetch() const { file_.Prefetch(begin_, rows_ * row_bytes()); }

  // Row `row` as stored, little endian: fills row_bytes() bytes. What RandomAccessFile::Read
  // returns, by the tensor's name.
  absl::Status Read(int64_t row, std::byte* to) const {
    QSERVE_CHECK(row >= 0 && row < rows_);
    const absl::Status status =
        file_.Read(begin_ + row * row_bytes(), {to, static_cast<size_t>(row_bytes())});
    if (status.ok()) return status;
    return absl::Status(status.code(),
                        fmt::format("tensor {}: {}", name_, std::string(status.message())));
  }

 private:
  RandomAccessFile file_;
  std::string name_;
  int64_t begin_ = 0;
  kernels::FloatType type_ = kernels::FloatType::kF32;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

}  // namespace qserve::worker::checkpoint
