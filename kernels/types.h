// Data types, matrices and activations: the nouns of the device interface. Plain structs over
// device memory that they do not own; a host may fill them but only the backend that allocated the
// memory may follow their pointers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qserve::kernels {

// Element types of floating-point weights as stored, and of activations.
enum class FloatType : uint8_t { kF32, kF16, kBf16 };
constexpr int64_t BytesOf(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }

// How a linear's weights are stored and multiplied.
enum class WeightFormat : uint8_t {
  kFloat,  // floating-point weights x fp32 activations, by a library: the full-precision baseline
  kHalfFixedOrder,  // fp16 weights x fp32 activations, our kernel, one fixed order over K (lm_head)
  kW8,              // int8 per-row symmetric weights x int8 activations, exact int32 (lm_head)
  kW4PerChannel,    // QoQ "gchn": u4 codes, fp scale and scaled zero per row, x int8 activations,
                    // exact int32
  kW4Group128,  // QoQ "g128": u4 codes, integer scale and offset per 128 columns, fp scale per row
};
// True if the format multiplies int8 activations (else fp32 ones).
constexpr bool TakesInt8(WeightFormat format) {
  return format == WeightFormat::kW8 || format == WeightFormat::kW4PerChannel ||
         format == WeightFormat::kW4Group128;
}

// How keys and values are stored. kInt4 and kInt8: per token and kv head, codes with an fp16 scale
// and an fp16 minimum, x' = code * scale + minimum (design "Arithmetic"). kF32 exists on the CPU
// only, for baselines.
enum class KvFormat : uint8_t { kInt4, kInt8, kF16, kF32 };

// Tokens of a KV page, and of an attention tile; positions are absolute. Attention restarts its
// running (max, sum, output) every kAttentionChunkTokens positions and merges chunks in order, so
// that a row's bits depend on nothing but its inputs.
inline constexpr int kKvPageTokens = 64;
inline constexpr int kAttentionChunkTokens = 256;
inline constexpr int kWeightGroup = 128;

// One layer's keys and values: `pages` pages of kKvPageTokens tokens each. The byte layout inside a
// page is the backend's own; KvPageBytes (kernels/backend.h) says its size.
struct KvLayer {
  void* pages = nullptr;  // keys and values of page p lie at pages + p * page_bytes
  int64_t page_bytes = 0;
};
struct KvShape {
  KvFormat format = KvFormat::kInt4;
  int kv_heads = 0;  // of this rank
  int head_dim = 0;
};

// Row-major matrix, rows x cols, consecutive rows `stride` elements apart (stride >= cols).
template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
  T* row(int64_t r) const { return data + r * stride; }
};

// Rows of floating-point values between operations: fp32 on the CPU; on a GPU the model's
// activation type (DeviceInfo::activation_type) unless an operation says fp32. A plain Matrix is
// one of fp32.
struct FloatMatrix {
  FloatMatrix() = default;
  FloatMatrix(void* values, FloatType element, int64_t row_count, int64_t columns,
              int64_t row_stride)
      : data(values), type(element), rows(row_count), cols(columns), stride(row_stride) {}
  FloatMatrix(float* values, int64_t row_count, int64_t columns, int64_t row_stride)
      : data(values), rows(row_count), cols(columns), stride(row_stride) {}
  FloatMatrix(Matrix<float> m)  // NOLINT(google-explicit-constructor)
      : data(m.data), rows(m.rows), cols(m.cols), stride(m.stride) {}
  // Only of an fp32 matrix.
  float* row(int64_t r) const { return static_cast<float*>(data) + r * stride; }

  void* data = nullptr;
  FloatType type = FloatType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // in elements
};

struct ConstFloatMatrix {
  ConstFloatMatrix() = default;
  ConstFloatMatrix(const void* values, FloatType element, int64_t row_count, int64_t columns,
                   int64_t row_stride)
      : data(values), type(element), rows(row_count), cols(columns), stride(row_stride) {}
  ConstFloatMatrix(const float* values, int64_t row_count, int64_t columns, int64_t row_stride)
      : data(values), rows(row_count), cols(columns), stride(row_stride) {}
  ConstFloatMatrix(const FloatMatrix& m)  // NOLINT(google-explicit-constructor)
      : data(m.data), type(m.type), rows(m.rows), cols(m.cols), stride(m.stride) {}
  ConstFloatMatrix(Matrix<const float> m)  // NOLINT(google-explicit-constructor)
      : data(m.data), rows(m.rows), cols(m.cols), stride(m.stride) {}
  ConstFloatMatrix(Matrix<float> m)  // NOLINT(google-explicit-constructor)
      : data(m.data), rows(m.rows), cols(m.cols), stride(m.stride) {}
  const float* row(int64_t r) const { return static_cast<const float*>(data) + r * stride; }

  const void* data = nullptr;
  FloatType type = FloatType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
};

// `count` columns from `first` on.
inline ConstFloatMatrix Columns(const ConstFloatMatrix& m, int64_t first, int64_t count) {
  return {static_cast<const std::byte*>(m.data) + first * BytesOf(m.type), m.type, m.rows, count,
          m.stride};
}

// What a producer (norm, SiLU*mul, attention) writes and a linear reads: `rows` tokens of `cols`
// features, either as floating point or as int8 rows with a scale and an exact integer sum each.
// Whoever asks decides by the pointer that is not null; both may be given (an observer wants the
// floats).
//
// int8 rows: element c of row r is q[r * q_stride + lead + c] = round_to_nearest_even(x[r][c] *
// (127 / amax_r)), amax_r the row's largest magnitude; scale[r] = amax_r / 127 in fp32; an all-zero
// row has scale 0 and codes 0. row_sum[r] = sum_c q[r][c]. `lead` columns in front of each row and
// everything from lead + cols up to q_stride are zero, are allocated zeroed and are never written:
// they align a tensor-parallel slice that starts inside a group of 128 columns with the groups of
// its weight (design "Slicing"). q_stride is a multiple of 128 (kWeightGroup); q is aligned to 64
// bytes.
struct Activation {
  int64_t rows = 0;
  int64_t cols = 0;
  float* f32 = nullptr;  // [rows, cols], contiguous rows of f32_stride
  int64_t f32_stride = 0;
  int8_t* q = nullptr;  // [rows, q_stride]
  int64_t q_stride = 0;
  int64_t lead = 0;
  float* scale = nullptr;      // [rows]
  int32_t* row_sum = nullptr;  // [rows]
};

// The q_stride an Activation of `cols` features behind `lead` zero columns needs.
constexpr int64_t PaddedColumns(int64_t lead, int64_t cols) {
  return (lead + cols + kWeightGroup - 1) / kWeightGroup * kWeightGroup;
}

}  // namespace qserve::kernels
