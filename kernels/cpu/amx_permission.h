// May this process use AMX's tile registers? Asked by op_table_x86.cc when tables are listed
// and by bf16_amx.cc.
// x86-64 alone.
#pragma once

namespace qserve::kernels::cpu {

// True if the CPU has AMX-TILE and AMX-INT8, the system saves their state, and it lets this process
// use them: Linux wants to be asked once a process (arch_prctl), since every thread that touches a
// tile then carries 8 KiB more state. The first call asks; the answer holds for all threads, those
// running and those to come. Any thread.
bool MayUseTileRegisters();

// True if that holds and the CPU has AMX-BF16.
bool TilesMultiplyBf16();

}  // namespace qserve::kernels::cpu
