// What the GPU tests share: a GPU and the CPU's reference side by side, and the way of numbers
// between them. Every operation goes through the backend, as the model's do.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/quant/half.h"
#include "tests/gpu/gpu.h"

namespace qserve::kernels::testing {

// Where everything is slow: on the emulated GPU, and under compute-sanitizer (run.sh says so).
inline bool SmallCasesOnly() {
  return GpuIsEmulated() || std::getenv("QSERVE_GPU_TEST_SMALL") != nullptr;
}

// Memory of a backend, filled from the host.
template <class T>
Buffer Upload(Backend& backend, const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  StatusOr<Buffer> buffer = backend.Allocate(std::max<int64_t>(bytes, 1), "test");
  EXPECT_TRUE(buffer.ok()) << buffer.status().message();
  if (bytes > 0) backend.CopyToDevice(buffer->data(), values.data(), bytes);
  return *std::move(buffer);
}

template <class T>
std::vector<T> Download(Backend& backend, const Buffer& buffer, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  if (count > 0) backend.CopyToHost(values.data(), buffer.data(), count * int64_t{sizeof(T)});
  return values;
}

inline float RoundTo(FloatType type, float value) {
  if (type == FloatType::kF16) return HalfToFloat(FloatToHalf(value));
  if (type == FloatType::kBf16) return Bf16ToFloat(FloatToBf16(value));
  return value;
}

// A matrix without gaps of the type that passes between the backend's operations.
struct DeviceFloats {
  Buffer memory;
  FloatMatrix view;
};
inline DeviceFloats UploadFloats(Backend& backend, const std::vector<float>& values, int64_t rows,
                                 int64_t cols) {
  DeviceFloats made;
  const FloatType type = backend.info().activation_type;
  if (type == FloatType::kF32) {
    made.memory = Upload(backend, values);
  } else {
    std::vector<uint16_t> narrow(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      narrow[i] = type == FloatType::kF16 ? FloatToHalf(values[i]) : FloatToBf16(values[i]);
    }
    made.memory = Upload(backend, narrow);
  }
  made.view = {made.memory.data(), type, rows, cols, cols};
  return made;
}
inline std::vector<float> DownloadFloats(Backend& backend, const DeviceFloats& floats) {
  const int64_t count = floats.view.rows * floats.view.cols;
  if (floats.view.type == FloatType::kF32) return Download<float>(backend, floats.memory, count);
  std::vector<float> wide;
  for (const uint16_t bits : Download<uint16_t>(backend, floats.memory, count)) {
    wide.push_back(floats.view.type == FloatType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits));
  }
  return wide;
}

// int8 rows and floats of an operation that writes both.
struct DeviceActivation {
  DeviceActivation(Backend& backend, int64_t rows, int64_t cols) {
    const int64_t stride = PaddedColumns(0, cols);
    f32 = Upload(backend, std::vector<float>(static_cast<size_t>(rows * cols)));
    q = Upload(backend, std::vector<int8_t>(static_cast<size_t>(rows * stride)));
    scale = Upload(backend, std::vector<float>(static_cast<size_t>(rows)));
    row_sum = Upload(backend, std::vector<int32_t>(static_cast<size_t>(rows)));
    view = {.rows = rows,
            .cols = cols,
            .f32 = f32.as<float>(),
            .f32_stride = cols,
            .q = q.as<int8_t>(),
            .q_stride = stride,
            .scale = scale.as<float>(),
            .row_sum = row_sum.as<int32_t>()};
  }
  Buffer f32, q, scale, row_sum;
  Activation view;
};

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (GpuCount() == 0) GTEST_SKIP() << "no NVIDIA GPU that CUDA can use is here";
    StatusOr<std::unique_ptr<Backend>> gpu = MakeGpu(FloatType::kF16);
    ASSERT_TRUE(gpu.ok()) << gpu.status().message();
    gpu_ = *std::move(gpu);
    StatusOr<std::unique_ptr<Backend>> cpu = cpu::CreateCpuBackend(0, "reference");
    ASSERT_TRUE(cpu.ok()) << cpu.status().message();
    cpu_ = *std::move(cpu);
  }

  static void Do(Backend& backend, const std::function<void()>& step) {
    const Status status = backend.Run(0, step);
    ASSERT_TRUE(status.ok()) << status.message();
  }

  std::unique_ptr<Backend> gpu_, cpu_;
};

}  // namespace qserve::kernels::testing
