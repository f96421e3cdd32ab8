// simt.h for a host compiler: the same vocabulary over the emulator, for tests of whole kernels.
// Included by simt.h alone. Values are what the PTX ISA says; copies in flight are really late, and
// memory they will write is poisoned until then.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/check.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/emulator/race_check.h"
#include "kernels/quant/half.h"

#define QSERVE_DEVICE inline
#define QSERVE_UNROLL

namespace qserve::kernels::cuda {

QSERVE_DEVICE int ThreadId() { return emulator::ThisThread().index; }
QSERVE_DEVICE int ThreadIdAnew() { return ThreadId(); }
QSERVE_DEVICE int LaneId() { return ThreadId() % 32; }
QSERVE_DEVICE int WarpId() { return ThreadId() / 32; }
QSERVE_DEVICE int BlockThreads() { return emulator::ThisBlock().threads; }
QSERVE_DEVICE int BlockX() { return emulator::ThisBlock().index.x; }
QSERVE_DEVICE int BlockY() { return emulator::ThisBlock().index.y; }
QSERVE_DEVICE int BlockZ() { return emulator::ThisBlock().index.z; }
QSERVE_DEVICE int GridX() { return emulator::ThisBlock().grid.x; }
QSERVE_DEVICE int GridY() { return emulator::ThisBlock().grid.y; }
QSERVE_DEVICE int GridZ() { return emulator::ThisBlock().grid.z; }

QSERVE_DEVICE uint8_t* SharedMemory() { return emulator::ThisBlock().shared; }

QSERVE_DEVICE void SyncThreads() { emulator::BlockBarrier(false); }
QSERVE_DEVICE bool SyncThreadsOr(bool predicate) { return emulator::BlockBarrier(predicate); }
QSERVE_DEVICE void SyncWarp() { emulator::SyncWarp(); }
QSERVE_DEVICE void ThreadFence() { emulator::ThreadFence(); }

template <class T>
QSERVE_DEVICE T ShuffleXor(T value, int mask) {
  return std::bit_cast<T>(emulator::Shuffle(std::bit_cast<uint32_t>(value), LaneId() ^ mask));
}
template <class T>
QSERVE_DEVICE T ShuffleFrom(T value, int lane) {
  return std::bit_cast<T>(emulator::Shuffle(std::bit_cast<uint32_t>(value), lane % 32));
}
template <class T>
QSERVE_DEVICE T ShuffleUp(T value, int delta) {
  const int from = LaneId() >= delta ? LaneId() - delta : LaneId();
  return std::bit_cast<T>(emulator::Shuffle(std::bit_cast<uint32_t>(value), from));
}
QSERVE_DEVICE uint32_t Ballot(bool predicate) { return emulator::Ballot(predicate); }

// Threads of the emulator take turns, but a race detector wants to know what may run side by side.
template <class T>
QSERVE_DEVICE T AtomicAdd(T* to, T value) {
  emulator::NoteAtomic(to);
  return std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed);
}
template <class T>
QSERVE_DEVICE T AtomicMax(T* to, T value) {
  emulator::NoteAtomic(to);
  std::atomic_ref at(*to);
  T before = at.load(std::memory_order_relaxed);
  while (value > before && !at.compare_exchange_weak(before, value, std::memory_order_relaxed)) {
  }
  return before;
}

QSERVE_DEVICE Vec16 Load16(const void* from) {
  QSERVE_CHECK(reinterpret_cast<uintptr_t>(from) % 16 == 0);
  emulator::Reads(from, sizeof(Vec16));
  Vec16 v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
QSERVE_DEVICE void Store16(void* to, Vec16 v) {
  QSERVE_CHECK(reinterpret_cast<uintptr_t>(to) % 16 == 0);
  emulator::Writes(to, sizeof v);
  std::memcpy(to, &v, sizeof v);
}

QSERVE_DEVICE void CopyAsync16(void* shared, const void* from, bool valid = true) {
  emulator::CopyAsync(shared, from, 16, valid);
}
QSERVE_DEVICE void CopyAsync4(void* shared, const void* from, bool valid = true) {
  emulator::CopyAsync(shared, from, 4, valid);
}
QSERVE_DEVICE void CopyAsyncCommit() { emulator::CopyAsyncCommit(); }
template <int kPending>
QSERVE_DEVICE void CopyAsyncWait() {
  emulator::CopyAsyncWait(kPending);
}

QSERVE_DEVICE void LoadMatrixX4(uint32_t (&r)[4], const void* shared_row) {
  emulator::LoadMatrixX4(r, shared_row, false);
}
QSERVE_DEVICE void LoadMatrixX4Transposed(uint32_t (&r)[4], const void* shared_row) {
  emulator::LoadMatrixX4(r, shared_row, true);
}
QSERVE_DEVICE void MmaU8S8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::MmaInt8(d, a, b, /*signed_a=*/false);
}
QSERVE_DEVICE void MmaS8S8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::MmaInt8(d, a, b, /*signed_a=*/true);
}
QSERVE_DEVICE void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::MmaF16(d, a, b);
}

template <int kTable>
QSERVE_DEVICE uint32_t Lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d = 0;
  for (uint32_t row = 0; row < 8; ++row) {
    if ((static_cast<uint32_t>(kTable) >> row & 1u) == 0) continue;
    d |= ((row & 4u) != 0 ? a : ~a) & ((row & 2u) != 0 ? b : ~b) & ((row & 1u) != 0 ? c : ~c);
  }
  return d;
}
QSERVE_DEVICE uint32_t BytePermute(uint32_t a, uint32_t b, uint32_t selector) {
  QSERVE_CHECK((selector & 0x8888u) == 0);  // the intrinsic has no use for these bits
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> (4 * i) & 7u;
    d |= (static_cast<uint32_t>(bytes >> (8 * pick)) & 0xffu) << (8 * i);
  }
  return d;
}
QSERVE_DEVICE int CountLeadingZeros(uint32_t x) { return std::countl_zero(x); }
QSERVE_DEVICE int PopCount(uint32_t x) { return std::popcount(x); }
QSERVE_DEVICE uint32_t BitsOf(float x) { return std::bit_cast<uint32_t>(x); }
QSERVE_DEVICE float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }
QSERVE_DEVICE uint32_t MultiplyHigh(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((uint64_t{a} * b) >> 32);
}

QSERVE_DEVICE float Fma(float a, float b, float c) { return std::fma(a, b, c); }
QSERVE_DEVICE float Divide(float a, float b) { return a / b; }
QSERVE_DEVICE float SquareRoot(float x) { return std::sqrt(x); }
QSERVE_DEVICE int32_t RoundToInt(float x) {
  // Saturates as the instruction does; the default rounding mode is to nearest even.
  if (std::isnan(x)) return 0;
  if (x >= 2147483648.0f) return INT32_MAX;
  if (x < -2147483648.0f) return INT32_MIN;
  return static_cast<int32_t>(std::nearbyint(x));
}
QSERVE_DEVICE float Exp2(float x) { return std::exp2(x); }
QSERVE_DEVICE float Max(float a, float b) { return std::fmax(a, b); }
QSERVE_DEVICE float Min(float a, float b) { return std::fmin(a, b); }
QSERVE_DEVICE float Abs(float a) { return std::fabs(a); }

QSERVE_DEVICE uint16_t FloatToHalfBits(float x) { return FloatToHalf(x); }
QSERVE_DEVICE float HalfBitsToFloat(uint16_t x) { return HalfToFloat(x); }
QSERVE_DEVICE uint32_t HalfPair(float low, float high) {
  return uint32_t{FloatToHalf(low)} | uint32_t{FloatToHalf(high)} << 16;
}
namespace internal {
// Two products of fp16 values are exact in double, and so is their sum up to one rounding that
// cannot matter to fp16.
template <class Operation>
uint32_t OfHalves(uint32_t a, uint32_t b, uint32_t c, Operation operation) {
  uint32_t d = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const auto value = [shift](uint32_t pair) {
      return static_cast<double>(HalfToFloat(static_cast<uint16_t>(pair >> shift)));
    };
    const double exact = operation(value(a), value(b), value(c));
    // Round to odd on the way to fp32, so that rounding twice is rounding once.
    float rounded = static_cast<float>(exact);
    if (std::isfinite(exact) && static_cast<double>(rounded) != exact &&
        (BitsOf(rounded) & 1u) == 0) {
      rounded =
          std::nextafter(rounded, exact > static_cast<double>(rounded) ? INFINITY : -INFINITY);
    }
    d |= static_cast<uint32_t>(FloatToHalf(rounded)) << shift;
  }
  return d;
}
}  // namespace internal
QSERVE_DEVICE uint32_t HalfPairAdd(uint32_t a, uint32_t b) {
  return internal::OfHalves(a, b, 0, [](double x, double y, double) { return x + y; });
}
QSERVE_DEVICE uint32_t HalfPairSub(uint32_t a, uint32_t b) {
  return internal::OfHalves(a, b, 0, [](double x, double y, double) { return x - y; });
}
QSERVE_DEVICE uint32_t HalfPairMul(uint32_t a, uint32_t b) {
  return internal::OfHalves(a, b, 0, [](double x, double y, double) { return x * y; });
}
QSERVE_DEVICE uint32_t HalfPairFma(uint32_t a, uint32_t b, uint32_t c) {
  return internal::OfHalves(a, b, c, [](double x, double y, double z) { return x * y + z; });
}
QSERVE_DEVICE uint16_t FloatToBf16Bits(float x) { return FloatToBf16(x); }
QSERVE_DEVICE float Bf16BitsToFloat(uint16_t x) { return Bf16ToFloat(x); }

}  // namespace qserve::kernels::cuda
