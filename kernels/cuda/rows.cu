// Launches of embedding, copies, norm and SiLU * up, see rows.h.
#include "kernels/cuda/rows.h"

#include "kernels/cuda/device/kernel.h"
#include "kernels/cuda/device/row_kernels.h"

namespace qserve::kernels::cuda {
namespace {

constexpr int64_t kColumnsPerBlock = int64_t{kGroup} * CopyRowsKernel::kThreads;

// Whether every row begins at a multiple of sixteen bytes.
bool Aligned(const void* data, int64_t stride, FloatType type) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * BytesOf(type) % 16 == 0;
}
template <class M>
bool Aligned(const M& m) {
  return Aligned(m.data, m.stride, m.type);
}
bool IsHalf(FloatType type) { return type == FloatType::kF16 || type == FloatType::kBf16; }

Grid GridOf(int64_t rows, int64_t cols) {
  return {.x = static_cast<int>(rows),
          .y = static_cast<int>((cols + kColumnsPerBlock - 1) / kColumnsPerBlock)};
}

// Threads and chunks that hold a row: a pure function of its columns, because the order of a sum
// follows from it.
template <FloatType kType, template <FloatType, int, int> class Kernel, class Params>
DeviceError LaunchByColumns(StreamHandle stream, int64_t rows, int64_t cols, const Params& fill) {
  const Grid grid = {.x = static_cast<int>(rows)};
  const auto launch = [&]<class K>(K*) {
    return Launch<K>(stream, grid, K::kSharedBytes, fill.template operator()<K>());
  };
  if (cols <= 1024) return launch(static_cast<Kernel<kType, 128, 1>*>(nullptr));
  if (cols <= 2048) return launch(static_cast<Kernel<kType, 256, 1>*>(nullptr));
  if (cols <= 4096) return launch(static_cast<Kernel<kType, 512, 1>*>(nullptr));
  if (cols <= 8192) return launch(static_cast<Kernel<kType, 512, 2>*>(nullptr));
  if (cols <= 16384) return launch(static_cast<Kernel<kType, 512, 4>*>(nullptr));
  return launch(static_cast<Kernel<kType, 1024, 4>*>(nullptr));
}

template <FloatType kType>
DeviceError Add(StreamHandle stream, const NormLaunch& launch) {
  using Kernel = AddRowsKernel<kType>;
  const typename Kernel::Params params = {
      .residual = static_cast<uint8_t*>(launch.residual.data),
      .residual_stride = launch.residual.stride,
      .delta = static_cast<const uint8_t*>(launch.delta.data),
      .delta_stride = launch.delta.stride,
      .cols = static_cast<int32_t>(launch.residual.cols),
      .aligned = Aligned(launch.residual) && Aligned(launch.delta)};
  return Launch<Kernel>(stream, GridOf(launch.residual.rows, launch.residual.cols), 0, params);
}

template <FloatType kType>
DeviceError Norm(StreamHandle stream, const NormLaunch& launch) {
  const bool adds = launch.delta.data != nullptr;
  if (adds && launch.rows != nullptr) {
    const DeviceError error = Add<kType>(stream, launch);
    if (error != 0) return error;
  }
  if (launch.out.rows == 0) return 0;
  const bool here = adds && launch.rows == nullptr;
  return LaunchByColumns<kType, NormKernel>(
      stream, launch.out.rows, launch.out.cols, [&]<class Kernel>() {
        return typename Kernel::Params{
            .residual = static_cast<uint8_t*>(launch.residual.data),
            .residual_stride = launch.residual.stride,
            .delta = here ? static_cast<const uint8_t*>(launch.delta.data) : nullptr,
            .delta_stride = launch.delta.stride,
            .gain = launch.gain,
            .rows = launch.rows,
            .epsilon = launch.epsilon,
            .aligned = Aligned(launch.residual) && (!here || Aligned(launch.delta)),
            .out = launch.out};
      });
}

template <FloatType kType>
DeviceError SiluMul(StreamHandle stream, const SiluMulLaunch& launch) {
  const bool aligned = Aligned(launch.gate_up);
  return LaunchByColumns<kType, SiluMulKernel>(
      stream, launch.out.rows, launch.out.cols, [&]<class Kernel>() {
        return typename Kernel::Params{
            .gate_up = static_cast<const uint8_t*>(launch.gate_up.data),
            .stride = launch.gate_up.stride,
            .gate_aligned = aligned,
            .up_aligned = aligned && launch.out.cols * BytesOf(kType) % 16 == 0,
            .out = launch.out};
      });
}

}  // namespace

DeviceError LaunchEmbed(StreamHandle stream, const EmbedLaunch& launch) {
  if (launch.out.rows == 0) return 0;
  const CopyRowsKernel::Params params = {
      .from = static_cast<const uint8_t*>(launch.table),
      .from_stride = launch.out.cols,
      .to = static_cast<uint8_t*>(launch.out.data),
      .to_stride = launch.out.stride,
      .table_rows = launch.table_rows,
      .token_ids = launch.token_ids,
      .sampled_ids = launch.sampled_ids,
      .first_id = launch.first_id,
      .cols = static_cast<int32_t>(launch.out.cols),
      .from_type = launch.table_type,
      .to_type = launch.out.type,
      .aligned = Aligned(launch.table, launch.out.cols, launch.table_type) && Aligned(launch.out)};
  return Launch<CopyRowsKernel>(stream, GridOf(launch.out.rows, launch.out.cols), 0, params);
}

DeviceError LaunchCopy(StreamHandle stream, const CopyLaunch& launch) {
  if (launch.from.rows != launch.to.rows || launch.from.cols != launch.to.cols) return kInvalidRows;
  if (launch.to.rows == 0) return 0;
  const CopyRowsKernel::Params params = {.from = static_cast<const uint8_t*>(launch.from.data),
                                         .from_stride = launch.from.stride,
                                         .to = static_cast<uint8_t*>(launch.to.data),
                                         .to_stride = launch.to.stride,
                                         .cols = static_cast<int32_t>(launch.to.cols),
                                         .from_type = launch.from.type,
                                         .to_type = launch.to.type,
                                         .aligned = Aligned(launch.from) && Aligned(launch.to)};
  return Launch<CopyRowsKernel>(stream, GridOf(launch.to.rows, launch.to.cols), 0, params);
}

DeviceError LaunchNorm(StreamHandle stream, const NormLaunch& launch) {
  const bool adds = launch.delta.data != nullptr;
  if (!IsHalf(launch.residual.type) || launch.residual.cols > kMaxRowColumns ||
      launch.out.cols != launch.residual.cols ||
      (adds && launch.delta.type != launch.residual.type) ||
      reinterpret_cast<uintptr_t>(launch.gain) % 16 != 0) {
    return kInvalidRows;
  }
  if (launch.residual.rows == 0) return 0;
  return launch.residual.type == FloatType::kF16 ? Norm<FloatType::kF16>(stream, launch)
                                                 : Norm<FloatType::kBf16>(stream, launch);
}

DeviceError LaunchSiluMul(StreamHandle stream, const SiluMulLaunch& launch) {
  if (!IsHalf(launch.gate_up.type) || launch.out.cols > kMaxRowColumns) return kInvalidRows;
  if (launch.out.rows == 0) return 0;
  return launch.gate_up.type == FloatType::kF16 ? SiluMul<FloatType::kF16>(stream, launch)
                                                : SiluMul<FloatType::kBf16>(stream, launch);
}

}  // namespace qserve::kernels::cuda
