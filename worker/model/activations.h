// Device memory of a step's intermediate values, allocated once for the largest step. Owned by
// Llama; one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/backend.h"
#include "worker/model/device_status.h"

namespace qserve::worker::model {

// Rows [first, first + count) of a matrix.
inline kernels::FloatMatrix RowsOf(kernels::FloatMatrix m, int64_t first, int64_t count) {
  QSERVE_CHECK(first >= 0 && count >= 0 && first + count <= m.rows);
  m.data = static_cast<std::byte*>(m.data) + first * m.stride * kernels::BytesOf(m.type);
  m.rows = count;
  return m;
}
inline kernels::Activation RowsOf(kernels::Activation a, int64_t first, int64_t count) {
  QSERVE_CHECK(first >= 0 && count >= 0 && first + count <= a.rows);
  if (a.f32 != nullptr) a.f32 += first * a.f32_stride;
  if (a.q != nullptr) {
    a.q += first * a.q_stride;
    a.scale += first;
    a.row_sum += first;
  }
  a.rows = count;
  return a;
}

// Up to `max_rows` rows of `type`, in memory of their own or in some that is shared with rows which
// are never wanted at the same time.
class FloatRows {
 public:
  static absl::StatusOr<FloatRows> Create(kernels::Backend& backend, kernels::FloatType type,
                                          int64_t max_rows, int64_t cols) {
    ASSIGN_OR_RETURN(
        kernels::Buffer buffer,
        ToAbsl(backend.Allocate(max_rows * cols * kernels::BytesOf(type), "activations")));
    FloatRows rows = Within(buffer, type, max_rows, cols);
    rows.own_ = std::move(buffer);
    return rows;
  }
  // `memory` must outlive the rows.
  static FloatRows Within(const kernels::Buffer& memory, kernels::FloatType type, int64_t max_rows,
                          int64_t cols) {
    QSERVE_CHECK(max_rows * cols * kernels::BytesOf(type) <= memory.bytes());
    FloatRows rows;
    rows.data_ = memory.data();
    rows.type_ = type;
    rows.max_rows_ = max_rows;
    rows.cols_ = cols;
    return rows;
  }

  // The first `count` rows.
  kernels::FloatMatrix First(int64_t count) const {
    QSERVE_CHECK(count <= max_rows_);
    return {data_, type_, count, cols_, cols_};
  }
  // The same of fp32 rows.
  kernels::Matrix<float> FirstF32(int64_t count) const {
    QSERVE_CHECK(count <= max_rows_ && type_ == kernels::FloatType::kF32);
    return {.data = static_cast<float*>(data_), .rows = count, .cols = cols_, .stride = cols_};
  }
  int64_t max_rows() const { return max_rows_; }
  int64_t own_bytes() const { return own_.bytes(); }

 private:
  kernels::Buffer own_;
  void* data_ = nullptr;
  kernels::FloatType type_ = kernels::FloatType::kF32;
  int64_t max_rows_ = 0;
  int64_t cols_ = 0;
};

inline kernels::Matrix<const float> AsConst(kernels::Matrix<float> m) {
  return {m.data, m.rows, m.cols, m.stride};
}

// What a linear reads, in the form that its weight takes: int8 rows aligned to the weight's lead,
// or fp32. Each linear input has memory of its own, because the zero columns around int8 rows must
// stay zero.
class LinearInputRows {
 public:
  // `keep_floats`: fp32 in any case, for an observer.
  static absl::StatusOr<LinearInputRows> Create(kernels::Backend& backend, int64_t max_rows,
                                                const kernels::PackedLinear& weight,
                                                bool keep_floats) {
    LinearInputRows rows;
    rows.max_rows_ = max_rows;
    kernels::Activation& view = rows.view_;
    view.cols = weight.k;
    const bool int8 = kernels::TakesInt8(weight.format);
    if (!int8 || keep_floats) {
      view.f32_stride = weight.k;
      ASSIGN_OR_RETURN(
          rows.floats_,
          ToAbsl(backend.Allocate(max_rows * weight.k * int64_t{sizeof(float)}, "activations")));
      view.f32 = rows.floats_.as<float>();
    }
    if (int8) {
      view.lead = weight.lead;
      view.q_stride = kernels::PaddedColumns(weight.lead, weight.k);
      ASSIGN_OR_RETURN(rows.codes_,
                       ToAbsl(backend.Allocate(max_rows * view.q_stride, "activations")));
      ASSIGN_OR_RETURN(rows.scales_,
                       ToAbsl(backend.Allocate(max_rows * int64_t{sizeof(float)}, "activations")));
      ASSIGN_OR_RETURN(
          rows.sums_, ToAbsl(backend.Allocate(max_rows * int64_t{sizeof(int32_t)}, "activations")));
      view.q = rows.codes_.as<int8_t>();
      view.scale = rows.scales_.as<float>();
      view.row_sum = rows.sums_.as<int32_t>();
    }
    return rows;
  }

  kernels::Activation First(int64_t count) const {
    QSERVE_CHECK(count <= max_rows_);
    kernels::Activation view = view_;
    view.rows = count;
    return view;
  }
  int64_t own_bytes() const {
    return floats_.bytes() + codes_.bytes() + scales_.bytes() + sums_.bytes();
  }

 private:
  kernels::Buffer floats_, codes_, scales_, sums_;
  kernels::Activation view_;
  int64_t max_rows_ = 0;
};

}  // namespace qserve::worker::model
