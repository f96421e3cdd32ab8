// Numbers and names that nobody can foresee, from the operating system: seeds of requests that
// bring none, request ids, epochs. Everything that follows from a seed is common/philox.h. Any
// thread.
#pragma once

#include <cstdint>
#include <string>

namespace qserve {

// 64 random bits.
uint64_t DrawSeed();

// 32 lower-case hexadecimal digits, none like those of any other process.
std::string DrawId();

}  // namespace qserve
