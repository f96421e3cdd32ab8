// simt.h for nvcc. Included by it alone; each function is one instruction or intrinsic. The PTX is
// that of sm_80.
#pragma once

#include <cstdint>

#define QSERVE_DEVICE __device__ __forceinline__
#define QSERVE_UNROLL _Pragma("unroll")

namespace qserve::kernels::cuda {

// Where this thread is.
QSERVE_DEVICE int ThreadId() { return static_cast<int>(threadIdx.x); }
// ThreadId(), read anew where it stands: between two uses far apart it takes no register.
QSERVE_DEVICE int ThreadIdAnew() {
  int id;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(id));
  return id;
}
QSERVE_DEVICE int LaneId() { return static_cast<int>(threadIdx.x & 31u); }
QSERVE_DEVICE int WarpId() { return static_cast<int>(threadIdx.x >> 5); }
QSERVE_DEVICE int BlockThreads() { return static_cast<int>(blockDim.x); }
QSERVE_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
QSERVE_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
QSERVE_DEVICE int BlockZ() { return static_cast<int>(blockIdx.z); }
QSERVE_DEVICE int GridX() { return static_cast<int>(gridDim.x); }
QSERVE_DEVICE int GridY() { return static_cast<int>(gridDim.y); }
QSERVE_DEVICE int GridZ() { return static_cast<int>(gridDim.z); }

// The block's dynamic shared memory, aligned to 128 bytes; undefined at the start.
QSERVE_DEVICE uint8_t* SharedMemory() {
  extern __shared__ __align__(128) uint8_t qserve_shared_memory[];
  return qserve_shared_memory;
}
QSERVE_DEVICE uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

QSERVE_DEVICE void SyncThreads() { __syncthreads(); }
QSERVE_DEVICE void SyncWarp() { __syncwarp(); }
// Writes of this thread are seen by the device before its later ones.
QSERVE_DEVICE void ThreadFence() { __threadfence(); }
QSERVE_DEVICE bool SyncThreadsOr(bool predicate) { return __syncthreads_or(predicate) != 0; }

// T: a 32-bit type.
template <class T>
QSERVE_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
QSERVE_DEVICE T ShuffleFrom(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
// From lane - delta; the first lanes keep their own.
template <class T>
QSERVE_DEVICE T ShuffleUp(T value, int delta) {
  return __shfl_up_sync(0xffffffffu, value, static_cast<unsigned>(delta));
}
QSERVE_DEVICE uint32_t Ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

// On shared or global memory; return the value before.
QSERVE_DEVICE int32_t AtomicAdd(int32_t* to, int32_t value) { return atomicAdd(to, value); }
QSERVE_DEVICE uint32_t AtomicAdd(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }
QSERVE_DEVICE uint32_t AtomicMax(uint32_t* to, uint32_t value) { return atomicMax(to, value); }
QSERVE_DEVICE uint64_t AtomicMax(uint64_t* to, uint64_t value) {
  static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
  return atomicMax(reinterpret_cast<unsigned long long*>(to),
                   static_cast<unsigned long long>(value));
}

// Sixteen aligned bytes. Stream: read once, kept out of L1, and never of memory that the same
// launch writes (the read-only path may miss it).
QSERVE_DEVICE Vec16 Load16(const void* from) {
  const uint4 v = *static_cast<const uint4*>(from);
  return {v.x, v.y, v.z, v.w};
}
QSERVE_DEVICE void Store16(void* to, Vec16 v) {
  *static_cast<uint4*>(to) = make_uint4(v.x, v.y, v.z, v.w);
}

// Sixteen bytes from global to shared memory, later; zeros if not valid (`from` is not
// read then, but must be a device address all the same).
// Done after CopyAsyncWait<n>, which leaves at most the n groups committed last under way; others
// see the bytes after a barrier.
QSERVE_DEVICE void CopyAsync16(void* shared, const void* from, bool valid = true) {
  const int bytes = valid ? 16 : 0;
  asm volatile(
      "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
      "l"(from), "r"(bytes)
      : "memory");
}
// Four bytes likewise.
QSERVE_DEVICE void CopyAsync4(void* shared, const void* from, bool valid = true) {
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(SharedAddress(shared)),
               "l"(from), "r"(bytes)
               : "memory");
}
QSERVE_DEVICE void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
QSERVE_DEVICE void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

QSERVE_DEVICE void LoadMatrixX4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}
QSERVE_DEVICE void LoadMatrixX4Transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}

// d += a * b, exact in int32.
QSERVE_DEVICE void MmaU8S8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
QSERVE_DEVICE void MmaS8S8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// fp32 sums; their order inside the instruction is the hardware's.
QSERVE_DEVICE void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Bits. Lop3's table is the PTX one: bit (a << 2 | b << 1 | c) is the result.
template <int kTable>
QSERVE_DEVICE uint32_t Lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return d;
}
QSERVE_DEVICE uint32_t BytePermute(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
QSERVE_DEVICE int CountLeadingZeros(uint32_t x) { return __clz(static_cast<int>(x)); }
QSERVE_DEVICE int PopCount(uint32_t x) { return __popc(x); }
QSERVE_DEVICE uint32_t BitsOf(float x) { return __float_as_uint(x); }
QSERVE_DEVICE float FloatOf(uint32_t bits) { return __uint_as_float(bits); }
// The high 32 bits of a product.
QSERVE_DEVICE uint32_t MultiplyHigh(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// fp32, each rounded to nearest even once.
QSERVE_DEVICE float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
QSERVE_DEVICE float Divide(float a, float b) { return __fdiv_rn(a, b); }
QSERVE_DEVICE float SquareRoot(float x) { return __fsqrt_rn(x); }
QSERVE_DEVICE int32_t RoundToInt(float x) { return __float2int_rn(x); }  // ties to even
// 2^x within 2 ulp; the same bits on all GPUs of one compute capability. Exp2(-infinity) is 0.
QSERVE_DEVICE float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
QSERVE_DEVICE float Max(float a, float b) { return fmaxf(a, b); }
QSERVE_DEVICE float Min(float a, float b) { return fminf(a, b); }
QSERVE_DEVICE float Abs(float a) { return fabsf(a); }

// Two fp16 values in one word, first in the low half; round to nearest even.
QSERVE_DEVICE uint32_t HalfPair(float low, float high) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
QSERVE_DEVICE uint16_t FloatToHalfBits(float x) {
  uint16_t d;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(x));
  return d;
}
QSERVE_DEVICE float HalfBitsToFloat(uint16_t x) {
  float d;
  asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(x));
  return d;
}
QSERVE_DEVICE uint32_t HalfPairAdd(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
QSERVE_DEVICE uint32_t HalfPairSub(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
QSERVE_DEVICE uint32_t HalfPairMul(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
QSERVE_DEVICE uint32_t HalfPairFma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// bfloat16, rounded to nearest even.
QSERVE_DEVICE uint16_t FloatToBf16Bits(float x) {
  uint16_t d;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(d) : "f"(x));
  return d;
}
QSERVE_DEVICE float Bf16BitsToFloat(uint16_t x) {
  return __uint_as_float(static_cast<uint32_t>(x) << 16);
}

}  // namespace qserve::kernels::cuda
