// Copies between strided matrices in host memory. Private to this room.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/quant/half.h"
#include "kernels/types.h"

namespace qserve::worker::comm {

template <class T>
bool IsContiguous(const kernels::Matrix<T>& matrix) {
  return matrix.stride == matrix.cols || matrix.rows <= 1;
}

// out[r * cols + c] = matrix[r][c].
template <class T>
void Pack(const kernels::Matrix<T>& matrix, float* out) {
  for (int64_t r = 0; r < matrix.rows; ++r) {
    std::copy_n(matrix.row(r), matrix.cols, out + r * matrix.cols);
  }
}

// matrix[r][first_col + c] = packed[r * cols + c] for c < cols.
inline void Unpack(const float* packed, int64_t cols, int64_t first_col,
                   const kernels::Matrix<float>& matrix) {
  for (int64_t r = 0; r < matrix.rows; ++r) {
    std::copy_n(packed + r * cols, cols, matrix.row(r) + first_col);
  }
}

// matrix[r][c] = packed[r * cols + c], rounded to the matrix's type; in host memory.
inline void Store(const float* packed, const kernels::FloatMatrix& matrix) {
  if (matrix.type == kernels::FloatType::kF32) {
    for (int64_t r = 0; r < matrix.rows; ++r) {
      std::copy_n(packed + r * matrix.cols, matrix.cols, matrix.row(r));
    }
    return;
  }
  const auto round =
      matrix.type == kernels::FloatType::kF16 ? kernels::FloatToHalf : kernels::FloatToBf16;
  for (int64_t r = 0; r < matrix.rows; ++r) {
    uint16_t* row = static_cast<uint16_t*>(matrix.data) + r * matrix.stride;
    std::transform(packed + r * matrix.cols, packed + (r + 1) * matrix.cols, row, round);
  }
}

// out[i] = ((x0[i] + x1[i]) + x2[i]) + ..., the one sum of the project: every transport adds by
// this function, in rank order. `out` may be one of the inputs.
inline void SumInRankOrder(const float* const* inputs, int ranks, int64_t count, float* out) {
  // In blocks that stay in the first-level cache, each in a place of its own, so that the compiler
  // may use vectors.
  constexpr int64_t kBlock = 1024;
  std::array<float, kBlock> sum;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t length = std::min(kBlock, count - first);
    std::copy_n(inputs[0] + first, length, sum.data());
    for (int r = 1; r < ranks; ++r) {
      const float* input = inputs[r] + first;
      for (int64_t i = 0; i < length; ++i) sum[static_cast<size_t>(i)] += input[i];
    }
    std::copy_n(sum.data(), length, out + first);
  }
}

}  // namespace qserve::worker::comm
