// The CPU backend through the factory: memory, the error latch, the choice of instruction set.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "kernels/device_factory.h"
#include "kernels/quant/rtn.h"

namespace qserve::kernels {
namespace {

std::unique_ptr<Backend> MakeCpu(int threads = 2) {
  auto backend = CreateBackend({.device = "cpu", .threads = threads});
  EXPECT_TRUE(backend.ok()) << backend.status().message();
  return *std::move(backend);
}

TEST(CpuBackend, MemoryIsZeroedAlignedAndHoldsWhatIsCopied) {
  const auto backend = MakeCpu();
  for (const int64_t bytes : {1, 100, 5000, (2 << 20) + 4096, 5 << 20}) {
    StatusOr<Buffer> buffer = backend->Allocate(bytes, "test");
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(buffer->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % (bytes >= (2 << 20) ? 2 << 20 : 64),
              0u);
    std::vector<char> host(static_cast<size_t>(bytes), 'x');
    backend->CopyToHost(host.data(), buffer->data(), bytes);
    EXPECT_EQ(host, std::vector<char>(static_cast<size_t>(bytes), 0));
    host.assign(host.size(), 'y');
    backend->CopyToDevice(buffer->data(), host.data(), bytes);
    EXPECT_EQ(std::memcmp(host.data(), buffer->data(), host.size()), 0);
  }
  EXPECT_TRUE(backend->Allocate(0, "test").ok());
  EXPECT_FALSE(backend->Allocate(-1, "test").ok());
}

TEST(CpuBackend, SaysHowMuchCouldNotBeAllocated) {
  const auto backend = MakeCpu();
  const StatusOr<Buffer> buffer = backend->Allocate(int64_t{1} << 60, "everything");
  ASSERT_FALSE(buffer.ok());
  EXPECT_EQ(buffer.status().code(), StatusCode::kOutOfMemory);
  EXPECT_NE(buffer.status().message().find("1152921504606846976 bytes for everything"),
            std::string::npos);
  EXPECT_GT(backend->AvailableMemory(), 0);
  EXPECT_GE(backend->info().memory_bytes, backend->AvailableMemory());
}

TEST(CpuBackend, TheFirstFailureStopsTheStepAndIsReturnedOnce) {
  const auto backend = MakeCpu();
  const std::vector<float> ones(32 * 32, 1.0f);
  const auto packed = backend->Pack(*RtnInt8PerRow(ones.data(), 32, 32));
  ASSERT_TRUE(packed.ok());
  std::vector<int8_t> q(128, 0);
  const float scale = 1;
  const int32_t sum = 1;
  q[0] = 1;
  std::vector<float> out(32, -1.0f);
  const auto linear = [&] {
    backend->Linear({.weight = packed->get(),
                     .x = {.rows = 1,
                           .cols = 32,
                           .q = q.data(),
                           .q_stride = 128,
                           .scale = const_cast<float*>(&scale),
                           .row_sum = const_cast<int32_t*>(&sum)},
                     .out = {out.data(), 1, 32, 32}});
  };
  const Status failed = backend->Run(0, [&] {
    backend->Fail(Unsupported("first"));
    backend->Fail(InvalidArgument("second"));
    linear();
  });
  EXPECT_EQ(failed.message(), "first");
  EXPECT_EQ(out[0], -1.0f) << "nothing runs after a failure";
  EXPECT_TRUE(backend->Run(0, linear).ok());
  EXPECT_NEAR(out[31], 1.0f, 1e-6);
}

TEST(CpuBackend, RefusesToPackWhatDoesNotValidate) {
  const std::vector<float> ones(64, 1.0f);
  LinearWeight weight = *RtnInt8PerRow(ones.data(), 2, 32);
  weight.scale.pop_back();
  const auto packed = MakeCpu()->Pack(weight);
  ASSERT_FALSE(packed.ok());
  EXPECT_EQ(packed.status().code(), StatusCode::kInvalidArgument);
}

TEST(DeviceFactory, EveryListedIsaRunsAndReferenceIsTheLast) {
  const std::vector<std::string> isas = SupportedCpuIsas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.back(), "reference");
  for (const std::string& isa : isas) {
    const auto backend = CreateBackend({.device = "cpu", .threads = 1, .cpu_isa = isa});
    ASSERT_TRUE(backend.ok());
    EXPECT_EQ((*backend)->info().isa, isa);
    EXPECT_EQ((*backend)->info().kernel_family, "cpu");
  }
}

TEST(DeviceFactory, AutoTakesTheBestOrWhatTheEnvironmentNames) {
  ::unsetenv("QSERVE_CPU_ISA");
  EXPECT_EQ((*CreateBackend({.device = "cpu", .threads = 1}))->info().isa,
            SupportedCpuIsas().front());
  ::setenv("QSERVE_CPU_ISA", "reference", 1);
  EXPECT_EQ((*CreateBackend({.device = "cpu", .threads = 1}))->info().isa, "reference");
  ::setenv("QSERVE_CPU_ISA", "sse9", 1);
  const auto refused = CreateBackend({.device = "cpu", .threads = 1});
  ::unsetenv("QSERVE_CPU_ISA");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), StatusCode::kUnsupported);
  EXPECT_NE(refused.status().message().find("QSERVE_CPU_ISA sse9"), std::string::npos)
      << refused.status().message();
  EXPECT_NE(refused.status().message().find("reference"), std::string::npos)
      << refused.status().message();
}

TEST(DeviceFactory, RefusesUnknownDevicesIsasAndThreadCounts) {
  EXPECT_FALSE(CreateBackend({.device = "tpu"}).ok());
  EXPECT_FALSE(CreateBackend({.device = "cpu", .cpu_isa = "neon"}).ok());
  EXPECT_FALSE(CreateBackend({.device = "cpu", .threads = -1}).ok());
  EXPECT_FALSE(CreateBackend({.device = "cpu", .threads = 100000}).ok());
}

}  // namespace
}  // namespace qserve::kernels
