// libFuzzer program of torch_file: build with -DQSERVE_BUILD_FUZZERS=ON (README.md).
#include "tests/fuzz/checkpoint_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  qserve::fuzz::FuzzTorchFile({data, size});
  qserve::fuzz::FuzzPickledState({data, size});
  return 0;
}
