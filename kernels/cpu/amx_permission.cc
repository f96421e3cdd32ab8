// AMX by CPUID, by XCR0 and by the kernel's leave, in this order: a CPU without it is asked
// nothing.
#include "kernels/cpu/amx_permission.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace qserve::kernels::cpu {
namespace {

constexpr uint32_t kOsSavesState = 1u << 27;              // CPUID 1, ECX: XGETBV may be used
constexpr uint32_t kBf16 = 1u << 22;                      // CPUID 7, EDX
constexpr uint32_t kTile = 1u << 24;                      // CPUID 7, EDX
constexpr uint32_t kInt8 = 1u << 25;                      // CPUID 7, EDX
constexpr uint64_t kTileState = (1u << 17) | (1u << 18);  // XCR0: configuration and data
constexpr long kRequestPermission = 0x1023;               // ARCH_REQ_XCOMP_PERM, Linux 5.16
constexpr long kTileData = 18;                            // XFEATURE_XTILEDATA

bool CpuHasTiles() {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsSavesState) == 0) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kTile) != 0 && (d & kInt8) != 0;
}

bool SystemSavesTiles() {
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileState) == kTileState;
}

}  // namespace

bool MayUseTileRegisters() {
  static const bool may = CpuHasTiles() && SystemSavesTiles() &&
                          ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return may;
}

bool TilesMultiplyBf16() {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  return MayUseTileRegisters() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBf16) != 0;
}

}  // namespace qserve::kernels::cpu
