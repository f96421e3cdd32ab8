// AMX's tile registers, whatever they hold: what linear_avx512amx.cc (int8) and bf16_amx.cc share,
// each of which adds its Dot and gets its own copy (unnamed namespace). The registers are the
// calling thread's between Configure and Release.
//
// The instructions are written in assembly: GCC's own wrappers take a tile's number as a literal
// alone, and do not say that a load reads memory.
#pragma once

#include <cstdint>

#include "kernels/amx_configuration.h"

namespace qserve::kernels::cpu::avx512amx {
namespace {

constexpr TileConfiguration kConfiguration;

// See amx_tile.h for the members.
struct AmxRegisters {
  static void Configure() { asm volatile("ldtilecfg %0" : : "m"(kConfiguration)); }
  static void Release() { asm volatile("tilerelease"); }

  template <int kTile>
  void Zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  void Load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  void Store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
  }
};

}  // namespace
}  // namespace qserve::kernels::cpu::avx512amx
