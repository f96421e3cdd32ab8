// Launches of the row-wise kernels: embedding, residual add with RMS norm, SiLU * up, and copies
// that communicators need. Called by CudaBackend and by communicators, on the thread that owns the
// stream; nothing is allocated and nobody waits. All pointers are device memory. Rows of the
// activation type are read and written sixteen bytes at a time where base and stride are multiples
// of sixteen bytes, else element by element, with the same results.
//
// A row's bits depend on its own contents and on the number of columns alone. Each returns the
// device's error code, 0 if the work was accepted; shapes and types that no kernel has are refused
// with kInvalidRows. Zero rows do nothing.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream.h"
#include "kernels/types.h"

namespace qserve::kernels::cuda {

inline constexpr DeviceError kInvalidRows = 1;  // as cudaErrorInvalidValue

// Columns that Norm and SiluMul can keep in a block's registers.
inline constexpr int64_t kMaxRowColumns = 32768;

// Row r of `out` = the table's row of id token_ids[r], or of sampled_ids[~token_ids[r]] where that
// is negative. Ids outside [first_id, first_id + table_rows) give zeros. Any element types.
struct EmbedLaunch {
  const void* table = nullptr;  // [table_rows, out.cols], rows without gaps
  FloatType table_type = FloatType::kF16;
  int32_t first_id = 0;
  int64_t table_rows = 0;
  const int32_t* token_ids = nullptr;    // [out.rows]
  const int32_t* sampled_ids = nullptr;  // [slots], or null if no id is negative
  FloatMatrix out;
};
DeviceError LaunchEmbed(StreamHandle stream, const EmbedLaunch& launch);

// As NormArgs (kernels/backend.h). residual and delta are fp16 or both bf16; the sum is rounded to
// that type once, and the norm is taken of the rounded values. `rows`: [out.rows] indices, or null
// for out.rows == residual.rows. With rows and delta, two kernels run.
struct NormLaunch {
  FloatMatrix residual;
  ConstFloatMatrix delta;       // data null: nothing is added
  const float* gain = nullptr;  // [residual.cols], aligned to 16 bytes
  float epsilon = 0;
  const int32_t* rows = nullptr;
  Activation out;
};
DeviceError LaunchNorm(StreamHandle stream, const NormLaunch& launch);

// As SiluMulArgs (kernels/backend.h): gate_up is fp16 or bf16, [out.rows, 2 * out.cols].
struct SiluMulLaunch {
  ConstFloatMatrix gate_up;
  Activation out;
};
DeviceError LaunchSiluMul(StreamHandle stream, const SiluMulLaunch& launch);

// to = from, element by element, rounded to nearest even where `to` is narrower. Any element types
// and strides, the same shape; they do not overlap.
struct CopyLaunch {
  ConstFloatMatrix from;
  FloatMatrix to;
};
DeviceError LaunchCopy(StreamHandle stream, const CopyLaunch& launch);

}  // namespace qserve::kernels::cuda
