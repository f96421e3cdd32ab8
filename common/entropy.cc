#include "common/entropy.h"

#include <random>

#include "common/hashing.h"

namespace qserve {

uint64_t DrawSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

std::string DrawId() { return HexDigest(DrawSeed()) + HexDigest(DrawSeed()); }

}  // namespace qserve
